"""The bearer keys in force: read from files of hashes, again whenever one changes."""

from __future__ import annotations

import hashlib
import hmac
import logging
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from backend.key_files import KeyEntry, KeyFiles, Limits, Signature
from backend.settings import ConfigError

log = logging.getLogger(__name__)

_CHECK_SECONDS = 0.5
_ID_BYTES = 16


@dataclass(frozen=True, slots=True)
class Key:
    """A key of the ring. `expires` is in Unix seconds; `models` of None allows all."""

    name: str
    digest: bytes
    expires: int | None = None
    models: frozenset[str] | None = None
    limits: Limits = field(default_factory=Limits)

    @property
    def id(self) -> str:
        """Names this text of the key without telling it: another one after a rotation."""
        return self.digest[:_ID_BYTES].hex()

    @property
    def expired(self) -> bool:
        """Whether its time is over."""
        return self.expires is not None and time.time() >= self.expires

    def may_use(self, model: str) -> bool:
        """Whether this key may ask for `model`."""
        return self.models is None or model in self.models


class KeyRing:
    """The keys in force in this process.

    The files are looked at no more than twice a second and read again when they are other ones
    (inode, size, times), so a revoked key stops working within a second and without a restart.
    A file that cannot be read or understood changes nothing but the log: the last good state
    holds. To revoke every key, write a file without any.
    """

    def __init__(self, files: KeyFiles) -> None:
        """Read the files; raise ConfigError, because at the start there is no last good state."""
        self._files = files
        self._checked_at = time.monotonic()
        # Taken before the content: a write in between shows as a change next time.
        self._signature: tuple[Signature, ...] = files.signature()
        self._keys = tuple(_keys_of(files.read()))

    def find(self, token: str) -> Key | None:
        """Return the key whose text is `token`, or None. It may have expired."""
        # A fast hash is right here: keys are 256 random bits, so there is nothing to guess that
        # a slow hash would protect, and every request pays for it.
        digest = hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
        return self._pick(digest, len(digest))

    def by_id(self, key_id: str) -> Key | None:
        """Return the key that has this `id`, or None. It may have expired."""
        try:
            digest = bytes.fromhex(key_id)
        except ValueError:
            return None
        return self._pick(digest, _ID_BYTES)

    def _pick(self, digest: bytes, length: int) -> Key | None:
        self._refresh()
        found = None
        # No early exit: the time must not tell which key came close, or where it stands.
        for key in self._keys:
            if hmac.compare_digest(key.digest[:length], digest):
                found = key
        return found

    def _refresh(self) -> None:
        now = time.monotonic()
        if now - self._checked_at < _CHECK_SECONDS:
            return
        self._checked_at = now
        signature = self._files.signature()
        if signature == self._signature:
            return
        # Remembered also when it is refused, so that a broken file is reported once.
        self._signature = signature
        try:
            self._keys = tuple(_keys_of(self._files.read()))
        except ConfigError as error:
            log.error("keys file refused, the last good keys stay in force: %s", error)
        else:
            log.info("keys read again: %d of them", len(self._keys))


def _keys_of(entries: Iterable[KeyEntry]) -> Iterator[Key]:
    for entry in entries:
        models = None if entry.models is None else frozenset(entry.models)
        hashes = [(entry.sha256, entry.expires)]
        if entry.previous is not None:
            ends = [t for t in (entry.previous.expires, entry.expires) if t is not None]
            hashes.append((entry.previous.sha256, min(ends)))
        for sha256, expires in hashes:
            yield Key(entry.name, bytes.fromhex(sha256), expires, models, entry.limits)
