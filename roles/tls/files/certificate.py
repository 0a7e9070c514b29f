"""Puts a certificate and its key where nginx reads them, or says why they are not fit for it.

    certificate.py install CERTIFICATE KEY [--name NAME]... [--into FOLDER] [--reload] [--check]
    certificate.py status [CERTIFICATE] [--days N]

CERTIFICATE is a PEM file with the server's own certificate first and those of its authorities after
it. Whatever is wrong with the pair is told at once, a line each, and what is in place stays.

A pair lies in a folder of its own, and `current` is a link to it: renaming one link changes both
files at once, so that a crash at any moment leaves a certificate with its own key. The pair before
it is kept. FOLDER/server.crt and FOLDER/server.key are links through `current`.

Exit status: 0 all is well (`install` prints `installed` or `unchanged`), 1 it is not.

Standard library and openssl only: it runs under the system's Python.
"""

from __future__ import annotations

import argparse
import fcntl
import functools
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

FOLDER = Path(os.environ.get("MILLRACE_TLS_DIR", "/etc/millrace/tls"))
CERTIFICATE, KEY = "server.crt", "server.key"
PEM = re.compile(r"-----BEGIN ([A-Z0-9 ]+)-----.+?-----END \1-----\n?", re.DOTALL)
SECONDS_A_DAY = 86400
KEPT = 2
"""Pairs that stay: the one in place and the one before it."""


class UnfitError(Exception):
    """The pair cannot serve; one line for each reason."""

    def __init__(self, *reasons: str) -> None:
        super().__init__("\n".join(reasons))


def openssl(*arguments: str, given: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run openssl; what it makes of a broken file is for the caller to judge."""
    return subprocess.run(
        ["openssl", *arguments], input=given, capture_output=True, text=True, check=False
    )


def blocks(text: str) -> list[tuple[str, str]]:
    """Return the PEM blocks of a text: what each is, and the block itself."""
    return [(found[1], found[0].rstrip() + "\n") for found in PEM.finditer(text)]


def read(path: Path) -> str:
    """Return a file's text. Raises UnfitError."""
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not a PEM file"
        raise UnfitError(f"{path} cannot be read: {reason}") from None


def chain_of(path: Path) -> list[str]:
    """Return the certificates of a file, in its order. Raises UnfitError."""
    found = blocks(read(path))
    if any("PRIVATE KEY" in kind for kind, _ in found):
        raise UnfitError(f"{path} holds a private key: it belongs in the file of the key alone")
    chain = [block for kind, block in found if kind.endswith("CERTIFICATE")]
    if not chain:
        raise UnfitError(f"{path} holds no certificate (-----BEGIN CERTIFICATE-----)")
    for block in chain:
        if not shown(block):
            raise UnfitError(f"{path} holds a certificate that openssl cannot read")
    return chain


@functools.cache
def shown(certificate: str) -> str:
    """Return what openssl shows of a certificate; nothing where it cannot read it."""
    asked = ("-subject", "-nameopt", "RFC2253", "-startdate", "-enddate", "-pubkey")
    return openssl("x509", "-noout", *asked, given=certificate).stdout


def value(certificate: str, name: str) -> str:
    """Return one line of what is shown; openssl escapes a new line within a subject."""
    found = re.search(rf"^{name}=(.*)$", shown(certificate), re.M)
    return found[1].strip() if found else ""


def subject(certificate: str) -> str:
    """Name a certificate in a message."""
    return value(certificate, "subject") or "without a subject"


def public_key(certificate: str) -> str:
    """Return the public key that a certificate is about."""
    return "".join(block for _, block in blocks(shown(certificate)))


def key_problems(key_path: Path, key: str, chain: Sequence[str]) -> list[str]:
    """Return why a key does not belong to the first certificate."""
    # An empty passphrase, or openssl would ask whoever sits at the terminal.
    told = openssl("pkey", "-pubout", "-passin", "pass:", given=key)
    if told.returncode:
        if "ENCRYPTED" in key:
            return [f"{key_path} has a passphrase, which nobody could type when nginx starts"]
        return [f"{key_path} is not a private key that openssl can read"]
    mine = [number for number, one in enumerate(chain) if public_key(one) == told.stdout]
    if not mine:
        return [f"{key_path} is not the key of this certificate ({subject(chain[0])})"]
    if mine[0]:
        return ["the chain is out of order: the server's own certificate has to be the first"]
    return []


def order_problems(chain: Sequence[str]) -> list[str]:
    """Return where first a certificate was not signed by the one behind it."""
    with tempfile.TemporaryDirectory() as folder:
        for one, behind in pairwise(chain):
            signed, signer = Path(folder) / "signed", Path(folder) / "signer"
            signed.write_text(one)
            signer.write_text(behind)
            told = openssl(
                "verify", "-partial_chain", "-no_check_time", "-no-CAfile", "-no-CApath",
                "-no-CAstore", "-trusted", str(signer), str(signed),
            )  # fmt: skip
            if told.returncode:
                return [
                    f"the chain is out of order: {subject(behind)} stands behind {subject(one)} "
                    "and did not sign it"
                ]
    return []


def ends_at(certificate: str) -> datetime:
    """Return when a certificate ends."""
    ends = datetime.strptime(value(certificate, "notAfter"), "%b %d %H:%M:%S %Y GMT")
    return ends.replace(tzinfo=UTC)


def begins_at(certificate: str) -> datetime:
    """Return when a certificate begins."""
    begins = datetime.strptime(value(certificate, "notBefore"), "%b %d %H:%M:%S %Y GMT")
    return begins.replace(tzinfo=UTC)


def time_problems(chain: Iterable[str], now: datetime) -> list[str]:
    """Return which certificates are not good now."""
    problems = []
    for one in chain:
        if ends_at(one) <= now:
            problems.append(f"{subject(one)} ended on {ends_at(one):%Y-%m-%d}")
        elif begins_at(one) > now:
            problems.append(
                f"{subject(one)} only begins on {begins_at(one):%Y-%m-%d %H:%M} UTC "
                f"(this server's clock says {now:%Y-%m-%d %H:%M})"
            )
    return problems


def name_problems(certificate: str, names: Iterable[str]) -> list[str]:
    """Return which names a certificate does not cover; `*.x` asks for any name under x."""
    problems = []
    for name in names:
        flag = "-checkip" if re.fullmatch(r"[0-9.]+|[0-9a-fA-F:]*:[0-9a-fA-F:.]*", name) else ""
        asked = name.replace("*.", "any-name.", 1) if name.startswith("*.") else name
        told = openssl("x509", "-noout", flag or "-checkhost", asked, given=certificate).stdout
        if "does match certificate" not in told:
            problems.append(f"the certificate does not cover {name}")
    return problems


def judge(certificate: Path, key: Path, names: Sequence[str]) -> tuple[str, str]:
    """Return the text of both files as they shall be installed. Raises UnfitError."""
    chain, secret = chain_of(certificate), read(key)
    keys = "".join(block for kind, block in blocks(secret) if "PRIVATE KEY" in kind)
    if not keys:
        raise UnfitError(f"{key} holds no private key (-----BEGIN PRIVATE KEY-----)")
    problems = key_problems(key, keys, chain)
    if not problems:
        # Only then is the first certificate the one to ask.
        problems = order_problems(chain) + name_problems(chain[0], names)
    problems += time_problems(chain, datetime.now(UTC))
    if problems:
        raise UnfitError(*problems)
    return "".join(chain), keys


def in_place(folder: Path) -> tuple[str, str] | None:
    """Return the pair that nginx reads now, or None where there is none."""
    try:
        return (folder / CERTIFICATE).read_text(), (folder / KEY).read_text()
    except OSError:
        return None


def write(path: Path, text: str, mode: int) -> None:
    """Write a file that is on the disk, with its mode, before it is named anywhere."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        os.fchmod(file.fileno(), mode)
        file.flush()
        os.fsync(file.fileno())


def link(path: Path, target: str) -> None:
    """Make `path` a link to `target` in one step, whatever it was before."""
    if path.is_symlink() and path.readlink() == Path(target):
        return
    fresh = path.with_name(f"{path.name}.new")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(target)
    fresh.replace(path)


def put(folder: Path, certificate: str, key: str) -> None:
    """Put a pair in place of the one before it."""
    pairs = folder / "pairs"
    pairs.mkdir(mode=0o755, exist_ok=True)
    pairs.chmod(0o755)
    name = hashlib.sha256((certificate + key).encode()).hexdigest()[:16]
    pair = pairs / name
    pair.mkdir(mode=0o755, exist_ok=True)
    pair.chmod(0o755)
    write(pair / CERTIFICATE, certificate, 0o644)
    write(pair / KEY, key, 0o600)
    os.utime(pair)
    link(folder / "current", f"pairs/{name}")
    for file in (CERTIFICATE, KEY):
        link(folder / file, f"current/{file}")
    old = sorted(pairs.iterdir(), key=lambda one: one.stat().st_mtime, reverse=True)
    for one in old[KEPT:]:
        shutil.rmtree(one)


def reload_nginx() -> None:
    """Have nginx read the pair; open streams finish with the old workers. Raises UnfitError."""
    if subprocess.run(["systemctl", "is-active", "-q", "nginx.service"], check=False).returncode:
        return
    told = subprocess.run(
        ["systemctl", "reload", "nginx.service"], capture_output=True, text=True, check=False
    )
    if told.returncode:
        raise UnfitError(f"nginx did not reload and goes on as before: {told.stderr.strip()}")


def install(args: argparse.Namespace) -> int:
    """Judge a pair and put it in place unless it is there already."""
    certificate, key = judge(args.certificate, args.key, args.name)
    if len(blocks(certificate)) == 1 and "CA:TRUE" not in openssl(
        "x509", "-noout", "-ext", "basicConstraints", given=certificate
    ).stdout.replace(" ", ""):
        print(
            "the certificate comes without those of its authority; browsers only trust it "
            "where its issuer itself is trusted",
            file=sys.stderr,
        )
    if in_place(args.into) == (certificate, key):
        print("unchanged")
        return 0
    if not args.check:
        args.into.mkdir(parents=True, exist_ok=True)
        with (args.into / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            put(args.into, certificate, key)
        if args.reload:
            reload_nginx()
    print("installed")
    return 0


def status(args: argparse.Namespace) -> int:
    """Say how long a certificate is good for."""
    certificate = chain_of(args.certificate)[0]
    left = (ends_at(certificate) - datetime.now(UTC)).total_seconds() / SECONDS_A_DAY
    when = f"{ends_at(certificate):%Y-%m-%d}"
    if left <= 0:
        raise UnfitError(f"the certificate ({subject(certificate)}) ended on {when}")
    said = f"the certificate ({subject(certificate)}) is good for {left:.0f} days, until {when}"
    if left < args.days:
        raise UnfitError(f"{said}: less than {args.days}")
    print(said)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Do what was asked for."""
    parser = argparse.ArgumentParser(prog="millrace-certificate", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    verbs = parser.add_subparsers(required=True)
    one = verbs.add_parser("install", help="check a pair and put it in place")
    one.add_argument("certificate", type=Path)
    one.add_argument("key", type=Path)
    one.add_argument("--name", action="append", default=[], help="a name it has to cover")
    one.add_argument("--into", type=Path, default=FOLDER, help="folder that nginx reads")
    one.add_argument("--reload", action="store_true", help="have nginx read it, if it runs")
    one.add_argument("--check", action="store_true", help="only say what would be done")
    one.set_defaults(do=install)
    two = verbs.add_parser("status", help="say how long the certificate is good for")
    two.add_argument("certificate", type=Path, nargs="?", default=FOLDER / CERTIFICATE)
    two.add_argument("--days", type=int, default=0, help="fail when it is good for less")
    two.set_defaults(do=status)
    args = parser.parse_args(argv)
    try:
        return int(args.do(args))
    except UnfitError as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
