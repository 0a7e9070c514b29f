"""What a key is given on the command line, in the words of people: `90d`, `2027-12-31`, `a,b`."""

from __future__ import annotations

import argparse
import re

from keys.inventory import KEY_NAME, RESERVED, unix_time

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}
_DURATION = re.compile(r"(\d{1,6})([smhdw])")


def duration(text: str) -> int:
    """Return seconds for `30s`, `10m`, `12h`, `90d` or `2w`."""
    found = _DURATION.fullmatch(text)
    if not found or not int(found[1]):
        raise argparse.ArgumentTypeError(f"'{text}' is no duration such as 10m, 12h, 90d or 2w")
    return int(found[1]) * _UNITS[found[2]]


class Moment:
    """An end: so long from now on, or a date, which means 0:00 UTC."""

    def __init__(self, text: str) -> None:
        self._seconds = duration(text) if _DURATION.fullmatch(text) else None
        try:
            self._unix = 0 if self._seconds is not None else unix_time(text)
        except ValueError:
            raise argparse.ArgumentTypeError(
                f"'{text}' is neither a duration such as 90d nor a date such as 2027-12-31"
            ) from None

    def unix(self, now: int) -> int:
        """Return the moment in Unix seconds."""
        return self._unix if self._seconds is None else now + self._seconds


def name(text: str) -> str:
    """Return a key's name."""
    if not KEY_NAME.fullmatch(text):
        raise argparse.ArgumentTypeError("a name has 1 to 100 characters, none of them invisible")
    if text == RESERVED:
        raise argparse.ArgumentTypeError(f"the name {RESERVED} is the stream check's own")
    return text


def models(text: str) -> list[str]:
    """Return the models of a list with commas."""
    found = [part.strip() for part in text.split(",") if part.strip()]
    if not found:
        raise argparse.ArgumentTypeError("name at least one model, or leave --models out")
    return found


def count(text: str) -> int:
    """Return a number from 1 up."""
    if not text.isdigit() or not 1 <= int(text) <= 10**9:
        raise argparse.ArgumentTypeError(f"'{text}' is no number from 1 up")
    return int(text)
