"""The bearer keys: a file of hashes, read again whenever it changes."""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import StringConstraints, ValidationError

from backend.settings import ConfigError, Strict, explain

log = logging.getLogger(__name__)

_CHECK_SECONDS = 1.0


class KeyEntry(Strict):
    """One key as the file holds it: its name and the SHA-256 of its text, in hex."""

    name: Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f]{1,100}$")]
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-fA-F]{64}$")]


class KeysFile(Strict):
    """The whole file: `{"keys": [...]}`.

    An unknown field is refused, not ignored: it may be a limit or an expiry that a newer release
    wrote, and a key must not quietly lose its restrictions when a release is rolled back.
    """

    keys: list[KeyEntry]


@dataclass(frozen=True, slots=True)
class Key:
    """A key that was presented and is good."""

    name: str
    digest: bytes


class KeyRing:
    """The keys in force in this process.

    The file is looked at no more than once a second and read again when it is another one
    (inode, size, times), so a revoked key stops working within a second and without a restart.
    A file that cannot be read or understood changes nothing but the log: the last good one holds.
    To revoke every key, write `{"keys": []}`.
    """

    def __init__(self, path: Path) -> None:
        """Read `path`; raise ConfigError, because at the start there is no last good file."""
        self._path = path
        self._checked_at = time.monotonic()
        self._signature, self._keys = self._read()

    def find(self, token: str) -> Key | None:
        """Return the key whose text is `token`, or None."""
        self._refresh()
        # A fast hash is right here: keys are 256 random bits, so there is nothing to guess that
        # a slow hash would protect, and every request pays for it.
        digest = hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
        found = None
        # No early exit: the time must not tell which key came close, or where it stands.
        for key in self._keys:
            if hmac.compare_digest(key.digest, digest):
                found = key
        return found

    def _refresh(self) -> None:
        now = time.monotonic()
        if now - self._checked_at < _CHECK_SECONDS:
            return
        self._checked_at = now
        try:
            signature = _signature(self._path.stat())
        except OSError as error:
            signature = (error.errno or -1,)
        if signature == self._signature:
            return
        try:
            self._signature, self._keys = self._read()
        except ConfigError as error:
            # Remembered, so that one broken file is reported once and not every second.
            self._signature = signature
            log.error("keys file refused, the last good one stays in force: %s", error)
        else:
            log.info("keys file read again: %d keys", len(self._keys))

    def _read(self) -> tuple[tuple[int, ...], tuple[Key, ...]]:
        try:
            with self._path.open("rb") as file:
                # Taken before the content: a write in between shows as a change next time.
                signature = _signature(os.fstat(file.fileno()))
                content = file.read()
        except OSError as error:
            raise ConfigError(f"cannot read {self._path}: {error.strerror}") from error
        try:
            entries = KeysFile.model_validate_json(content).keys
        except ValidationError as error:
            raise ConfigError(explain(str(self._path), error)) from error
        return signature, tuple(Key(entry.name, bytes.fromhex(entry.sha256)) for entry in entries)


def _signature(status: os.stat_result) -> tuple[int, ...]:
    return (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
