"""Keeps the list of Cloudflare's addresses: whom nginx believes and whom the firewall lets in.

    cloudflare_ranges.py seed SHIPPED     use a list that came with the kit, where there is no newer
    cloudflare_ranges.py refresh          fetch today's list, judge it, use it
        --trust-the-change                although it differs more from the last one than is usual
    Both: --root FOLDER                   instead of / (for tests)

A list is judged before it is used: one that is empty, broken, half, or opens the door to others is
refused with the reason, and everything stays as it is. What nginx or nft refuses is put back.

Exit status: 0 all is well (prints `changed: ...` or `unchanged`), 1 it is not.

Standard library only: it runs under the system's Python.
"""

from __future__ import annotations

import argparse
import datetime
import fcntl
import ipaddress
import json
import os
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

SOURCES = {4: "https://www.cloudflare.com/ips-v4", 6: "https://www.cloudflare.com/ips-v6"}
FETCH_SECONDS = 30
MOST_BYTES = 16 * 1024
"""The two lists are 230 and 105 bytes."""

COUNTS = {4: range(8, 65), 6: range(3, 33)}
"""How many networks there may be; for years it has been 15 and 7."""
PREFIXES = {4: range(12, 25), 6: range(28, 49)}
"""How large one may be; theirs are from /13 to /22 and from /29 to /32."""
LEAST_KEPT, MOST_GROWN = 0.75, 1.5
"""Parts of the last list, in addresses: how much of it is still there, how large the new one is."""

CONFIG = Path("etc/millrace")
RANGES = CONFIG / "cloudflare/ranges.json"
NGINX_FILE = CONFIG / "cloudflare/nginx-real-ip.conf"
NFT_FILE = CONFIG / "firewall/cloudflare.nft"
TABLE = "millrace"


class RangesError(Exception):
    """The list cannot be had or cannot be used; the message says why."""


@dataclass(frozen=True)
class Ranges:
    """A list. `date` is the day it was published or fetched, as YYYY-MM-DD."""

    date: str
    ipv4: tuple[Network, ...]
    ipv6: tuple[Network, ...]

    def of(self, family: int) -> tuple[Network, ...]:
        """Return the networks of one family, 4 or 6."""
        return self.ipv4 if family == 4 else self.ipv6

    def same_networks(self, other: Ranges) -> bool:
        """Whether the same addresses are meant."""
        return self.ipv4 == other.ipv4 and self.ipv6 == other.ipv6


def networks(text: str, family: int) -> tuple[Network, ...]:
    """Return the networks in a text, one a line, in order and joined where they touch.

    Raises RangesError for anything that is not such a list: a page, a message, half a line.
    """
    found: list[Network] = []
    for line in text.split():
        try:
            network = ipaddress.ip_network(line)
        except ValueError:
            raise RangesError(f"IPv{family}: no network: {line[:60]!r}") from None
        if network.version != family:
            raise RangesError(f"IPv{family}: {network} is of the other family")
        found.append(network)
    # All are of one family, which the types do not say.
    return tuple(ipaddress.collapse_addresses(found))  # type: ignore[type-var]


def implausible(family: int, new: Sequence[Network]) -> str:
    """Return why a family's list can be Cloudflare's by no means, or nothing."""
    if len(new) not in COUNTS[family]:
        return f"IPv{family}: {len(new)} networks, where {_span(COUNTS[family])} would be plausible"
    for network in new:
        if network.prefixlen not in PREFIXES[family]:
            return f"IPv{family}: {network} is larger or smaller than any of theirs would be"
        if not network.is_global or network.is_multicast:
            return f"IPv{family}: {network} is nobody's on the internet"
    return ""


def unusual(family: int, new: Sequence[Network], last: Sequence[Network]) -> str:
    """Return how a family's list differs from the last one more than is usual, or nothing."""
    before = _size(last)
    kept = sum(_shared(a, b) for a in last for b in new) / before
    if kept < LEAST_KEPT:
        return f"IPv{family}: only {kept:.0%} of the last list is in it"
    grown = _size(new) / before
    if grown > MOST_GROWN:
        return f"IPv{family}: it is {grown:.1f} times as large as the last list"
    return ""


def judge(new: Ranges, last: Ranges | None, *, trust: bool = False) -> None:
    """Raise RangesError for a list that must not be used. `trust` bears with a large change."""
    for family in (4, 6):
        if why := implausible(family, new.of(family)):
            raise RangesError(why)
        if last is None or trust:
            continue
        if why := unusual(family, new.of(family), last.of(family)):
            raise RangesError(
                f"{why}. If https://www.cloudflare.com/ips/ says so, run "
                "python3 /usr/local/lib/millrace/cloudflare_ranges.py refresh --trust-the-change"
            )


def _span(numbers: range) -> str:
    return f"{numbers.start} to {numbers.stop - 1}"


def _size(nets: Sequence[Network]) -> int:
    return sum(network.num_addresses for network in nets)


def _shared(a: Network, b: Network) -> int:
    """Return how many addresses two networks share: one holds the other, or none."""
    return min(a.num_addresses, b.num_addresses) if a.overlaps(b) else 0


# What is written ------------------------------------------------------------------------------


def as_json(ranges: Ranges, source: str) -> str:
    """Return the list as it is kept."""
    told = {
        "source": source,
        "date": ranges.date,
        "ipv4": [str(network) for network in ranges.ipv4],
        "ipv6": [str(network) for network in ranges.ipv6],
    }
    return json.dumps(told, indent=2) + "\n"


def as_nginx(ranges: Ranges) -> str:
    """Return the list as nginx includes it."""
    lines = [f"set_real_ip_from {network};" for network in (*ranges.ipv4, *ranges.ipv6)]
    return "\n".join([f"# Cloudflare's addresses of {ranges.date}", *lines, ""])


def as_nft(ranges: Ranges) -> str:
    """Return the list as a transaction that fills the firewall's sets."""
    lines = [f"# Cloudflare's addresses of {ranges.date}"]
    for family in (4, 6):
        name = f"inet {TABLE} cloudflare{family}"
        elements = ", ".join(str(network) for network in ranges.of(family))
        lines += [f"flush set {name}", f"add element {name} {{ {elements} }}"]
    return "\n".join([*lines, ""])


def from_json(text: str) -> Ranges:
    """Return a list that was kept. Raises RangesError."""
    try:
        told = json.loads(text)
        date = datetime.date.fromisoformat(told["date"]).isoformat()
        lists = {n: " ".join(told[f"ipv{n}"]) for n in (4, 6)}
    except (ValueError, KeyError, TypeError) as error:
        raise RangesError(f"not a list as it is kept: {error}") from None
    return Ranges(date, networks(lists[4], 4), networks(lists[6], 6))


# What is asked and done -----------------------------------------------------------------------


def fetch(url: str) -> str:
    """Return what lies at an address. Raises RangesError."""
    try:
        # The addresses above, and https alone.
        with urllib.request.urlopen(url, timeout=FETCH_SECONDS) as answer:  # noqa: S310
            body: bytes = answer.read(MOST_BYTES + 1)
    except (OSError, ValueError) as error:
        raise RangesError(f"{url} cannot be fetched: {error}") from None
    if len(body) > MOST_BYTES:
        raise RangesError(f"{url} sends more than {MOST_BYTES} bytes")
    try:
        return body.decode("ascii")
    except UnicodeDecodeError:
        raise RangesError(f"{url} does not send text") from None


class System:
    """nginx and nft of this server: each is asked before it is told."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def refusal(self) -> str:
        """Return what nginx or nft has against the files as they lie there, or nothing."""
        if self._uses_nginx() and (why := self._run("nginx", "-t", "-q")):
            return f"nginx refuses it: {why}"
        checked = ("nft", "-c", "-f", str(self.root / NFT_FILE))
        if self._has_table() and (why := self._run(*checked)):
            return f"nft refuses it: {why}"
        return ""

    def use(self) -> str:
        """Make both use the files; return what went wrong, or nothing."""
        if self._has_table() and (why := self._run("nft", "-f", str(self.root / NFT_FILE))):
            return f"nft: {why}"
        runs = self._uses_nginx() and not self._run("systemctl", "is-active", "-q", "nginx")
        if runs and (why := self._run("systemctl", "reload", "nginx")):
            return f"nginx: {why}"
        return ""

    def _uses_nginx(self) -> bool:
        try:
            return NGINX_FILE.name in (self.root / "etc/nginx/nginx.conf").read_text()
        except OSError:
            return False

    def _has_table(self) -> bool:
        return not self._run("nft", "list", "table", "inet", TABLE)

    def _run(self, *command: str) -> str:
        """Run a command; return what it said where it failed, or nothing."""
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=60, check=False,
                stdin=subprocess.DEVNULL,
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired) as error:
            return str(error)
        if done.returncode == 0:
            return ""
        return (done.stderr + done.stdout).strip() or f"{command[0]} ended with {done.returncode}"


def read_kept(root: Path) -> Ranges | None:
    """Return the list that is in use; None where there is none that can be used."""
    try:
        kept = from_json((root / RANGES).read_text())
        judge(kept, None)
    except (OSError, UnicodeDecodeError, RangesError):
        return None
    return kept


def put(root: Path, ranges: Ranges, source: str, system: System) -> bool:
    """Use a list; return whether anything changed. Raises RangesError with all as it was before.

    The list itself is written last: a run that is cut off is finished by the next one.
    """
    files = {NFT_FILE: as_nft(ranges), NGINX_FILE: as_nginx(ranges)}
    before = {path: _read(root / path) for path in files}
    listed = as_json(ranges, source)
    if before == files and _read(root / RANGES) == listed:
        return False
    if before != files:
        try:
            for path, text in files.items():
                write(root / path, text)
            if why := system.refusal() or system.use():
                raise RangesError(why)
        except (RangesError, OSError):
            for path, old in before.items():
                if old is None:
                    (root / path).unlink(missing_ok=True)
                else:
                    write(root / path, old)
            if all(old is not None for old in before.values()):
                system.use()
            raise
    write(root / RANGES, listed)
    return True


def write(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _read(path: Path) -> str | None:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        return None


def seed(root: Path, shipped: Path, system: System) -> bool:
    """Use the list that came with the kit, unless the one in use is as new; see to the files."""
    given = from_json(shipped.read_text())
    judge(given, None)
    kept = read_kept(root)
    if kept is None or kept.date < given.date:
        kept = given
    source = json.loads(_read(root / RANGES) or "{}").get("source", "") if kept is not given else ""
    return put(root, kept, source or json.loads(shipped.read_text())["source"], system)


def refresh(
    root: Path, today: str, system: System, ask: Callable[[str], str], *, trust: bool = False
) -> bool:
    """Fetch the list, judge it, use it; return whether anything changed. Raises RangesError."""
    new = Ranges(today, networks(ask(SOURCES[4]), 4), networks(ask(SOURCES[6]), 6))
    last = read_kept(root)
    judge(new, last, trust=trust)
    if last is not None and last.same_networks(new):
        # The files may be gone or old all the same; their date stays that of the last change.
        return put(root, last, ", ".join(SOURCES.values()), system)
    return put(root, new, ", ".join(SOURCES.values()), system)


@contextmanager
def alone(root: Path) -> Iterator[None]:
    """Keep a second run waiting: the timer and a run of site.yml may meet."""
    folder = (root / RANGES).parent
    folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--root", type=Path, default=Path("/"), help=argparse.SUPPRESS)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("seed").add_argument("shipped", type=Path)
    verbs.add_parser("refresh").add_argument("--trust-the-change", action="store_true")
    given = parser.parse_args(arguments)
    system = System(given.root)
    today = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    try:
        with alone(given.root):
            if given.verb == "seed":
                changed = seed(given.root, given.shipped, system)
            else:
                trust = given.trust_the_change
                changed = refresh(given.root, today, system, fetch, trust=trust)
            ranges = read_kept(given.root)
    except (RangesError, OSError) as error:
        print(f"Cloudflare's addresses stay as they were: {error}", file=sys.stderr)
        return 1
    assert ranges is not None
    count = f"{len(ranges.ipv4)} IPv4 and {len(ranges.ipv6)} IPv6 networks of {ranges.date}"
    print(f"changed: {count}" if changed else f"unchanged: {count}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
