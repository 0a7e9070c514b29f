"""What the hardware guard wrote down: read for /readyz, and never in anybody's way."""

from __future__ import annotations

import logging
from pathlib import Path

from pydantic import BaseModel, ValidationError

log = logging.getLogger(__name__)


class _Report(BaseModel):
    problems: list[str] = []
    notes: list[str] = []


class HardwareReport:
    """The guard's report. It is written whole, a few hundred bytes, on a file system in memory."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._complaint = ""

    def read(self) -> list[str]:
        """Return what keeps the engine down, then what is only to be known; empty of no report."""
        try:
            report = _Report.model_validate_json(self._file.read_bytes())
        except FileNotFoundError:
            return []
        except (OSError, ValidationError) as error:
            if str(error) != self._complaint:
                log.warning("%s cannot be read: %s", self._file, error)
            self._complaint = str(error)
            return []
        return [*report.problems, *report.notes]
