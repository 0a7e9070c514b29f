"""Wait until a service answers its health check: a unit's ExecStartPost.

    python wait_ready.py URL SECONDS

Ends with 0 when URL answers 200, with 1 when the unit's main process ($MAINPID) is gone or the time
is up. systemd then knows that the start failed, instead of believing that a process that exists
also serves.
"""

from __future__ import annotations

import os
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

PAUSE_SECONDS = 0.5


def main() -> int:
    """Poll until ready."""
    url, seconds = sys.argv[1], float(sys.argv[2])
    process = Path("/proc") / os.environ.get("MAINPID", "self")
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310
                if answer.status == 200:
                    return 0
        except (urllib.error.URLError, OSError):
            pass
        if not process.exists():
            print("the service ended before it was ready", file=sys.stderr)
            return 1
        time.sleep(PAUSE_SECONDS)
    print(f"not ready after {seconds:.0f} s", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
