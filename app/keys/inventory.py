"""Keys as an owner writes them down, and what of them the server is given: hashes."""

from __future__ import annotations

import datetime
import hashlib
import re
from collections.abc import Mapping
from typing import Any

VERSION = 2
"""Of the file on the server; backend/key_files.py reads it."""

KEY_TEXT = re.compile(r"[\x21-\x7e]{32,512}")
KEY_NAME = re.compile(r"[^\x00-\x1f\x7f]{1,100}")
LIMITS = ("requests_per_minute", "tokens_per_minute", "concurrent_streams")
_FIELDS = ("key", "expires", "models", "limits")
_EARLIEST = 1_000_000_000
RESERVED = "streamcheck"


def keys_file(clients: Mapping[str, Any]) -> dict[str, Any]:
    """Return the server's file for `clients`: name to a key's text, or to a mapping with `key`
    and, as wanted, `expires` (a date, or Unix seconds), `models` and `limits`.
    """
    keys = []
    for name in sorted(clients):
        client = clients[name]
        entry: dict[str, Any] = {"name": str(name), "sha256": sha256(key_text(client))}
        if isinstance(client, Mapping):
            if client.get("expires") is not None:
                entry["expires"] = unix_time(client["expires"])
            if client.get("models") is not None:
                entry["models"] = [str(model) for model in client["models"]]
            if client.get("limits"):
                entry["limits"] = {str(k): int(v) for k, v in client["limits"].items()}
        keys.append(entry)
    return {"version": VERSION, "keys": keys}


def key_text(client: Any) -> str:
    """Return a client's key from either form."""
    return str(client["key"] if isinstance(client, Mapping) else client)


def sha256(text: str) -> str:
    """Return what the server keeps of a key."""
    return hashlib.sha256(text.encode()).hexdigest()


def unix_time(value: Any) -> int:
    """Return Unix seconds for such, or for a date: 0:00 UTC, from when on the key is refused.

    Raises ValueError.
    """
    if isinstance(value, datetime.datetime):
        moment = value if value.tzinfo else value.replace(tzinfo=datetime.UTC)
        return int(moment.timestamp())
    if isinstance(value, datetime.date):
        midnight = datetime.datetime(value.year, value.month, value.day, tzinfo=datetime.UTC)
        return int(midnight.timestamp())
    text = str(value)
    if text.isdigit():
        return int(text)
    return unix_time(datetime.datetime.fromisoformat(text))


def client_problems(clients: Any) -> list[str]:
    """Return what is wrong with `millrace_client_keys`, a line each; no key appears in it."""
    setting = "millrace_client_keys"
    if not isinstance(clients, Mapping) or not clients:
        return [f"{setting}: name at least one client with a key."]
    problems = []
    for name, client in clients.items():
        problems += [f"{setting}: {problem}" for problem in _problems_of(str(name), client)]
    if RESERVED in clients:
        problems.append(f"{setting}: the name {RESERVED} is the stream check's own.")
    texts = [_text_or_nothing(client) for client in clients.values()]
    if len(set(texts)) != len(texts):
        problems.append(f"{setting}: two clients share a key; each needs its own.")
    return problems


def _text_or_nothing(client: Any) -> str:
    if isinstance(client, Mapping):
        return str(client.get("key", ""))
    return str(client)


def _problems_of(name: str, client: Any) -> list[str]:
    problems = []
    if not KEY_NAME.fullmatch(name):
        problems.append("a name has 1 to 100 characters, none of them invisible.")
    if not KEY_TEXT.fullmatch(_text_or_nothing(client)):
        problems.append(
            f"the key of {name} needs 32 or more printable characters, no spaces. "
            "Remove its file in millrace_secrets_dir to have one made."
        )
    if not isinstance(client, Mapping):
        return problems
    unknown = sorted(set(map(str, client)) - set(_FIELDS))
    if unknown:
        problems.append(f"{name} has {', '.join(unknown)}; what it may have is {_list(_FIELDS)}.")
    if client.get("expires") is not None and not _is_time(client["expires"]):
        problems.append(f"expires of {name} is a date such as 2027-12-31, or Unix seconds.")
    models = client.get("models")
    if models is not None and (
        not isinstance(models, list) or not models or not all(map(_is_text, models))
    ):
        problems.append(f"models of {name} is a list of model names; leave it out to allow all.")
    limits = client.get("limits")
    if limits is not None and not _are_limits(limits):
        problems.append(f"limits of {name} are {_list(LIMITS)}, each a number from 1 up.")
    return problems


def _are_limits(limits: Any) -> bool:
    return isinstance(limits, Mapping) and all(
        str(name) in LIMITS and _is_count(value) for name, value in limits.items()
    )


def _is_time(value: Any) -> bool:
    try:
        return not isinstance(value, bool) and unix_time(value) >= _EARLIEST
    except ValueError:
        return False


def _is_count(value: Any) -> bool:
    return not isinstance(value, bool) and str(value).isdigit() and 1 <= int(value) <= 10**9


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _list(words: tuple[str, ...]) -> str:
    return f"{', '.join(words[:-1])} and {words[-1]}"
