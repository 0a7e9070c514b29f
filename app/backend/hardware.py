"""What the hardware guard wrote down: read for /readyz, and never in anybody's way."""

from __future__ import annotations

import logging
from pathlib import Path

from pydantic import BaseModel, ValidationError

log = logging.getLogger(__name__)


class _Report(BaseModel):
    problems: list[str] = []
    notes: list[str] = []


class HardwareReports:
    """The guard's reports, one for each engine: a folder of files that are written whole, a few
    hundred bytes each, on a file system in memory.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._complaint = ""

    def read(self) -> list[str]:
        """Return what keeps engines down, then what is only to be known; empty of no report."""
        try:
            files = sorted(self._folder.glob("*.json"))
        except OSError as error:
            self._complain(self._folder, error)
            files = []
        reports = [self._one(file) for file in files]
        problems = [line for report in reports for line in report.problems]
        notes = [line for report in reports for line in report.notes]
        return list(dict.fromkeys([*problems, *notes]))

    def _one(self, file: Path) -> _Report:
        try:
            return _Report.model_validate_json(file.read_bytes())
        except FileNotFoundError:
            return _Report()
        except (OSError, ValidationError) as error:
            self._complain(file, error)
            return _Report()

    def _complain(self, place: Path, error: Exception) -> None:
        """Log it, once."""
        if str(error) != self._complaint:
            log.warning("%s cannot be read: %s", place, error)
        self._complaint = str(error)
