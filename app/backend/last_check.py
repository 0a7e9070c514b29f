"""What the stream check left for the status view: read when asked, never in anybody's way."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, Field, StringConstraints, ValidationError

log = logging.getLogger(__name__)

# The check itself keeps well under all of these: see streamcheck/summary.py.
_MOST_BYTES = 512 * 1024
_Word = Annotated[str, StringConstraints(max_length=64)]
_Sentence = Annotated[str, StringConstraints(max_length=1000)]


class CheckedHop(BaseModel):
    """One hop as the check saw it. `reads` holds [seconds since the request, events]."""

    name: _Word
    verdict: _Word
    summary: _Sentence = ""
    median_gap_ms: float | None
    first_token_ms: float | None
    reads: Annotated[list[tuple[float, int]], Field(max_length=200)]


class CheckReport(BaseModel):
    """The last report, `when` in ISO 8601."""

    when: _Word | None
    verdict: _Word
    summary: _Sentence = ""
    hops: Annotated[list[CheckedHop], Field(max_length=64)]


class LastCheck:
    """The file that the stream check replaces after each run."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._seen: tuple[int, int] | None = None
        self._report: CheckReport | None = None

    def read(self) -> CheckReport | None:
        """Return the last report; None when there is none, or none that makes sense."""
        try:
            found = self._file.stat()
            if (mark := (found.st_mtime_ns, found.st_ino)) != self._seen:
                self._report = self._parse()
                self._seen = mark
        except FileNotFoundError:
            self._seen = self._report = None
        except OSError as error:
            log.warning("%s cannot be read: %s", self._file, error.strerror)
            return None
        return self._report

    def _parse(self) -> CheckReport | None:
        with self._file.open("rb") as file:
            text = file.read(_MOST_BYTES + 1)
        if len(text) > _MOST_BYTES:
            log.warning("%s is too long to be shown", self._file)
            return None
        try:
            return CheckReport.model_validate_json(text)
        except ValidationError as error:
            log.warning("%s makes no sense: %d mistakes", self._file, error.error_count())
            return None
