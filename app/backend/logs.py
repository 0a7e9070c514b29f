"""Logs: one JSON object a line on stderr, and never a word of a prompt or an answer."""

from __future__ import annotations

import json
import logging
import traceback
from datetime import UTC, datetime
from typing import Any


class JsonFormatter(logging.Formatter):
    """Make one line of JSON from a log record.

    `extra={"fields": {...}}` adds fields. Of an exception it keeps the type and the places it
    passed through but not its text: parsers quote what they choke on, and that may be a prompt.
    An OSError's errno text is safe and kept.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without its newline."""
        message = record.getMessage()
        if not record.name.startswith("backend"):
            # asyncio puts the repr of a failed task on further lines, with the exception's text.
            message = message.strip().partition("\n")[0]
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": message,
        }
        line.update(getattr(record, "fields", {}))
        if record.exc_info and record.exc_info[1] is not None:
            line["exception"] = describe(record.exc_info[1])
        return json.dumps(line, default=repr)


def describe(error: BaseException) -> dict[str, Any]:
    """Return the type, the errno text if it has one, the frames and the causes of `error`."""
    described: dict[str, Any] = {"type": type(error).__qualname__}
    if isinstance(error, OSError) and error.strerror:
        described["errno"] = error.strerror
    described["frames"] = [
        f"{frame.filename}:{frame.lineno} {frame.name}"
        for frame in traceback.extract_tb(error.__traceback__, limit=-12)
    ]
    cause = error.__cause__ or error.__context__
    if cause is not None and cause is not error:
        described["cause"] = describe_shortly(cause)
    return described


def describe_shortly(error: BaseException) -> str:
    """Return the type of `error`, with the errno text where there is one."""
    errno_text = error.strerror if isinstance(error, OSError) else None
    return f"{type(error).__qualname__}: {errno_text}" if errno_text else type(error).__qualname__


def log_config(level: str = "INFO") -> dict[str, Any]:
    """Return a `logging.config.dictConfig` that sends every logger here through stderr."""
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"json": {"()": "backend.logs.JsonFormatter"}},
        "handlers": {
            "stderr": {
                "class": "logging.StreamHandler",
                "formatter": "json",
                "stream": "ext://sys.stderr",
            }
        },
        "root": {"handlers": ["stderr"], "level": level},
    }
