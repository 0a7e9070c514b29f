"""The server's end of `./millrace key`, run as root by Ansible.

    python -m backend.issue check INVENTORY ISSUED      are the two files good together?
    python -m backend.issue change INVENTORY ISSUED     do what standard input says
    python -m backend.issue try INVENTORY ISSUED        the same, but write nothing

INVENTORY is the keys file that Ansible renders, ISSUED the one that this program owns. The order on
standard input is one JSON object: `do` (add, revoke, rotate, list), and what that needs. The answer
is one as well: `keys`, what there is afterwards, without any hash. Exit status 1: it cannot be
done, and standard error says why.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter, ValidationError

from backend.key_files import (
    VERSION,
    KeyEntry,
    KeyFiles,
    KeyName,
    Previous,
    Sha256,
    UnixTime,
    read_keys,
)
from backend.settings import ConfigError, Strict, explain

_INVENTORYS = (
    "{name} comes from the inventory: change millrace_client_keys there and run "
    "./millrace site --tags backend"
)


class Add(Strict):
    """Make a new key known."""

    do: Literal["add"]
    entry: KeyEntry


class Revoke(Strict):
    """Forget a key."""

    do: Literal["revoke"]
    name: KeyName


class Rotate(Strict):
    """Give a key a new text; the old one holds until `previous_expires`, if that is given."""

    do: Literal["rotate"]
    name: KeyName
    sha256: Sha256
    previous_expires: UnixTime | None = None


class List(Strict):
    """Change nothing."""

    do: Literal["list"]


Order = Add | Revoke | Rotate | List
_ORDER: TypeAdapter[Order] = TypeAdapter(Annotated[Order, Field(discriminator="do")])


def main(arguments: list[str] | None = None) -> int:
    """Do what the command line says; return the exit status."""
    words = sys.argv[1:] if arguments is None else arguments
    if len(words) != 3 or words[0] not in {"check", "change", "try"}:
        print(__doc__, file=sys.stderr)
        return 2
    files = KeyFiles(Path(words[1]), Path(words[2]))
    try:
        if words[0] == "check":
            files.read()
            return 0
        order = _read_order(sys.stdin.buffer.read())
        with _alone(files):
            told = carry_out(order, files, write=words[0] == "change")
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps(told))
    return 0


def carry_out(order: Order, files: KeyFiles, *, write: bool) -> dict[str, object]:
    """Change the file of issued keys as `order` says, and tell what is there then.

    Raises ConfigError when it cannot be done, and then nothing was changed.
    """
    assert files.issued is not None
    theirs = read_keys(files.inventory)
    ours = read_keys(files.issued) if files.issued.exists() else []
    changed = _changed(order, ours, {entry.name for entry in theirs})
    if changed is not ours:
        _replace(files, changed, keep=write)
    return {
        "keys": [
            *(_told(entry, "inventory") for entry in theirs),
            *(_told(entry, "issued") for entry in changed),
        ]
    }


def _changed(order: Order, ours: list[KeyEntry], theirs: set[str]) -> list[KeyEntry]:
    if isinstance(order, List):
        return ours
    name = order.entry.name if isinstance(order, Add) else order.name
    known = {entry.name: entry for entry in ours}
    if isinstance(order, Add):
        if name in theirs | set(known):
            raise ConfigError(f"there is a key {name} already: take another name, or rotate it")
        return [*ours, order.entry]
    if name not in known:
        if name in theirs:
            raise ConfigError(_INVENTORYS.format(name=name))
        raise ConfigError(f"there is no key {name}; ./millrace key list tells which there are")
    if isinstance(order, Revoke):
        return [entry for entry in ours if entry.name != name]
    old = known[name]
    previous = None
    if order.previous_expires is not None:
        previous = Previous(sha256=old.sha256, expires=order.previous_expires)
    known[name] = old.model_copy(update={"sha256": order.sha256, "previous": previous})
    return list(known.values())


def _replace(files: KeyFiles, entries: list[KeyEntry], *, keep: bool) -> None:
    """Write beside, check as the backend would, and only then rename."""
    target = files.issued
    assert target is not None
    like = files.inventory.stat()
    fresh = [entry.model_dump(exclude_none=True, exclude_defaults=True) for entry in entries]
    content = json.dumps({"version": VERSION, "keys": fresh}, indent=2) + "\n"
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    draft = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(content)
            file.flush()
            os.fchown(file.fileno(), like.st_uid, like.st_gid)
            os.fchmod(file.fileno(), like.st_mode & 0o777)
            os.fsync(file.fileno())
        KeyFiles(files.inventory, draft).read()
        if keep:
            draft.replace(target)
    finally:
        draft.unlink(missing_ok=True)


def _told(entry: KeyEntry, origin: str) -> dict[str, object]:
    """Return an entry for people: without its hash."""
    told = entry.model_dump(exclude={"sha256", "previous"})
    now = int(time.time())
    old = entry.previous.expires if entry.previous else 0
    return {
        **told,
        "origin": origin,
        "expired": entry.expires is not None and entry.expires <= now,
        "previous_expires": old if old > now else None,
    }


def _read_order(text: bytes) -> Order:
    try:
        return _ORDER.validate_json(text)
    except ValidationError as error:
        raise ConfigError(explain("the order", error)) from error


@contextlib.contextmanager
def _alone(files: KeyFiles) -> Iterator[None]:
    """Two at once would each write what the other did not know of."""
    folder = os.open(files.inventory.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


if __name__ == "__main__":
    sys.exit(main())
