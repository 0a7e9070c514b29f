"""What the check is doing, on standard error, while it is doing it."""

from __future__ import annotations

import shutil
import sys
import time

from streamcheck.remote import PROGRESS


class Progress:
    """In a terminal one line that changes, elsewhere a line per hop; `raw`: a line per step."""

    def __init__(self, *, raw: bool = False, quiet: bool = False) -> None:
        self._raw = raw
        self._quiet = quiet
        self._live = sys.stderr.isatty() and not raw
        self._last = ""
        self._began = time.monotonic()

    def say(self, text: str) -> None:
        """Tell one step: `hop: what`."""
        if self._quiet:
            return
        if self._raw:
            sys.stderr.write(f"{PROGRESS}{text}\n")
        elif self._live:
            width = shutil.get_terminal_size().columns - 1
            line = f"{time.monotonic() - self._began:4.0f} s  {text}"
            sys.stderr.write(f"\r\x1b[2K{line[:width]}")
        elif (hop := text.partition(":")[0]) != self._last:
            self._last = hop
            sys.stderr.write(f"checking {hop} ...\n")
        sys.stderr.flush()

    def done(self) -> None:
        """Wipe the line."""
        if self._live and not self._quiet:
            sys.stderr.write("\r\x1b[2K")
            sys.stderr.flush()
