"""The keys as files: what stands in them, and how they are read together.

There are two, of one shape. One is written by Ansible from the inventory, whole, at each run; the
other belongs to `./millrace key`. So a run never undoes what the verb did, nor the other way
round. A name is in one of them or in the other.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, StringConstraints, ValidationError

from backend.settings import ConfigError, Strict, explain

VERSION: Literal[2] = 2

KeyName = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f]{1,100}$")]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-fA-F]{64}$")]
# Unix seconds; from 2001 on, so that a duration given by mistake is found.
UnixTime = Annotated[int, Field(ge=1_000_000_000, le=1 << 40)]
Count = Annotated[int, Field(ge=1, le=1_000_000_000)]


class Limits(Strict):
    """What one key may take; None is no limit."""

    requests_per_minute: Count | None = None
    tokens_per_minute: Count | None = None
    concurrent_streams: Count | None = None


class Previous(Strict):
    """The hash that a key had before it was rotated, which holds a little longer."""

    sha256: Sha256
    expires: UnixTime


class KeyEntry(Strict):
    """One key as a file holds it: never its text, only the SHA-256 of that, in hex.

    `models` is what it may ask for; None is whatever is served.
    """

    name: KeyName
    sha256: Sha256
    created: UnixTime | None = None
    expires: UnixTime | None = None
    models: Annotated[list[str], Field(min_length=1)] | None = None
    limits: Limits = Limits()
    previous: Previous | None = None


class KeysFile(Strict):
    """A whole file.

    An unknown field is refused, not ignored: it may be a limit that a newer release wrote, and a
    key must not quietly lose its restrictions when a release is rolled back.
    """

    version: Literal[2]
    keys: list[KeyEntry]


Signature = tuple[int, ...]
"""What tells one state of a file from another; a missing file has one as well."""
_MISSING: Signature = ()


@dataclass(frozen=True, slots=True)
class KeyFiles:
    """The two files. The verb's may be missing: then no key was made by it yet."""

    inventory: Path
    issued: Path | None = None

    def signature(self) -> tuple[Signature, ...]:
        """Tell the present state of both, without reading them."""
        return tuple(_look(path) for path in (self.inventory, self.issued) if path is not None)

    def read(self) -> list[KeyEntry]:
        """Return every entry of both; raise ConfigError for what cannot be read or understood."""
        keys = read_keys(self.inventory)
        if self.issued is not None and _look(self.issued) != _MISSING:
            issued = read_keys(self.issued)
            check_distinct(keys, issued)
            return [*keys, *issued]
        check_distinct(keys)
        return keys


def read_keys(path: Path) -> list[KeyEntry]:
    """Return the entries of one file; raise ConfigError."""
    try:
        return KeysFile.model_validate_json(path.read_bytes()).keys
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except ValidationError as error:
        raise ConfigError(explain(str(path), error)) from error


def check_distinct(inventory: Iterable[KeyEntry], issued: Iterable[KeyEntry] = ()) -> None:
    """Raise ConfigError where two keys share a name or a text: whose limits would count?"""
    names: dict[str, str] = {}
    digests: dict[str, str] = {}
    for origin, entries in (("the inventory", inventory), ("./millrace key", issued)):
        for entry in entries:
            if entry.name in names:
                raise ConfigError(
                    f"the name {entry.name} is taken twice, by {names[entry.name]} and by "
                    f"{origin}: revoke one with `./millrace key revoke`, or rename the one in "
                    "millrace_client_keys"
                )
            names[entry.name] = origin
            for digest in (entry.sha256, *([entry.previous.sha256] if entry.previous else [])):
                holder = digests.setdefault(digest.lower(), entry.name)
                if holder != entry.name:
                    raise ConfigError(
                        f"{holder} and {entry.name} have the same key: each needs its own"
                    )


def _look(path: Path) -> Signature:
    try:
        status = path.stat()
    except FileNotFoundError:
        return _MISSING
    except OSError as error:
        return (error.errno or -1,)
    return (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
