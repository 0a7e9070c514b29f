"""The list of Cloudflare's addresses: what is believed, and that a bad one changes nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import cloudflare_ranges as cr
import pytest
from cloudflare_ranges import Ranges, RangesError
from hypothesis import given
from hypothesis import strategies as st
from unit_kit import ROOT

SHIPPED = ROOT / "roles/cloudflare_ranges/files/ranges.json"
TODAY = "2026-11-26"


def shipped() -> Ranges:
    return cr.from_json(SHIPPED.read_text())


def texts(ranges: Ranges) -> dict[str, str]:
    """The two lists as Cloudflare sends them."""
    return {url: "\n".join(map(str, ranges.of(n))) for n, url in cr.SOURCES.items()}


@dataclass
class Played(cr.System):
    """nginx and nft: what they say, and what they were shown."""

    root: Path
    refuses: str = ""
    fails: str = ""
    used: list[str] = field(default_factory=list)

    def refusal(self) -> str:
        return self.refuses

    def use(self) -> str:
        self.used.append((self.root / cr.NFT_FILE).read_text())
        return self.fails


def everything(root: Path) -> dict[str, str]:
    return {p.name: p.read_text() for p in sorted(root.rglob("*")) if p.is_file()}


@pytest.fixture
def seeded(tmp_path: Path) -> tuple[Path, Played]:
    """A server with the list that ships."""
    system = Played(tmp_path)
    assert cr.seed(tmp_path, SHIPPED, system)
    return tmp_path, system


def asking(told: dict[str, str]) -> Callable[[str], str]:
    return lambda url: told[url]


def test_the_shipped_list_is_good_and_dated() -> None:
    ranges = shipped()
    cr.judge(ranges, None)
    assert (len(ranges.ipv4), len(ranges.ipv6)) == (15, 7)
    assert ranges.date == "2026-10-14"
    addresses = ("104.16.0.1", "172.71.255.1", "162.159.0.1", "2606:4700::1", "2a06:98c7::1")
    for address in addresses:
        assert address in cr.as_nginx(ranges) or any(
            cr.ipaddress.ip_address(address) in network for network in ranges.ipv4 + ranges.ipv6
        )


def test_what_nginx_and_nft_are_given(seeded: tuple[Path, Played]) -> None:
    root, system = seeded
    nginx, nft = (root / cr.NGINX_FILE).read_text(), (root / cr.NFT_FILE).read_text()
    assert nginx.count("set_real_ip_from ") == 22
    assert "set_real_ip_from 2400:cb00::/32;\n" in nginx
    assert "flush set inet millrace cloudflare4\nadd element inet millrace cloudflare4 { " in nft
    assert "flush set inet millrace cloudflare6\nadd element inet millrace cloudflare6 { " in nft
    assert "104.16.0.0/13" in nft
    assert system.used == [nft]
    assert (root / cr.NGINX_FILE).stat().st_mode & 0o777 == 0o644


def test_a_second_run_changes_nothing(seeded: tuple[Path, Played]) -> None:
    root, system = seeded
    before = everything(root)
    assert not cr.seed(root, SHIPPED, system)
    assert not cr.refresh(root, TODAY, system, asking(texts(shipped())))
    assert not cr.refresh(root, "2026-11-27", system, asking(texts(shipped())))
    assert everything(root) == before
    assert len(system.used) == 1


def test_a_small_change_is_used(seeded: tuple[Path, Played]) -> None:
    root, system = seeded
    told = texts(shipped())
    told[cr.SOURCES[4]] = told[cr.SOURCES[4]].replace("131.0.72.0/22", "131.0.72.0/22\n1.1.0.0/20")
    assert cr.refresh(root, TODAY, system, asking(told))
    assert "1.1.0.0/20" in system.used[-1]
    kept = json.loads((root / cr.RANGES).read_text())
    assert kept["date"] == TODAY
    # The list that ships is older now.
    assert not cr.seed(root, SHIPPED, system)
    assert "1.1.0.0/20" in (root / cr.NGINX_FILE).read_text()


GOOD4, GOOD6 = (texts(shipped())[cr.SOURCES[n]] for n in (4, 6))
LINES4 = GOOD4.split()
HOSTILE = {
    "empty": ("", GOOD6),
    "only blanks": (" \n\n", GOOD6),
    "no IPv6": (GOOD4, ""),
    "a page": ("<!DOCTYPE html><html><body>104.16.0.0/13</body></html>", GOOD6),
    "a message": ("error code: 1015", GOOD6),
    "JSON": (json.dumps(LINES4), GOOD6),
    "everybody": (f"{GOOD4}\n0.0.0.0/0", GOOD6),
    "everybody in halves": (f"{GOOD4}\n0.0.0.0/1\n128.0.0.0/1", GOOD6),
    "everybody of IPv6": (GOOD4, f"{GOOD6}\n::/0"),
    "private": (f"{GOOD4}\n10.0.0.0/12", GOOD6),
    "private of IPv6": (GOOD4, f"{GOOD6}\nfd00::/32"),
    "loopback": (f"{GOOD4}\n127.0.0.0/16", GOOD6),
    "link-local": (f"{GOOD4}\n169.254.0.0/16", GOOD6),
    "multicast": (f"{GOOD4}\n224.0.0.0/16", GOOD6),
    "one address": (f"{GOOD4}\n8.8.8.8/32", GOOD6),
    "an address without a size": (f"{GOOD4}\n8.8.8.8", GOOD6),
    "bits behind the size": (f"{GOOD4}\n8.8.8.8/16", GOOD6),
    "of the other family": (GOOD4, GOOD4),
    "one of the other family": (GOOD4, f"{GOOD6}\n8.8.8.0/28"),
    "mapped": (GOOD4, f"{GOOD6}\n::ffff:0:0/96"),
    "half": ("\n".join(LINES4[:8]), GOOD6),
    "cut off": (GOOD4[:100], GOOD6),
    "somebody else's": ("\n".join(f"8.{n}.0.0/16" for n in range(15)), GOOD6),
    "huge": ("\n".join(f"{a}.{b}.0.0/16" for a in range(11, 100) for b in range(256)), GOOD6),
    "twice as large": (GOOD4 + "".join(f"\n{n}.0.0.0/12" for n in (11, 12, 13)), GOOD6),
    "many": (GOOD4 + "".join(f"\n8.8.{n}.0/24" for n in range(0, 200, 2)), GOOD6),
    "nginx's own words": (f"{GOOD4}\n8.8.0.0/16;}}include/etc/passwd", GOOD6),
    "nft's own words": (GOOD4, f"{GOOD6}\n}};flush ruleset"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_bad_list_changes_nothing(name: str, seeded: tuple[Path, Played]) -> None:
    root, system = seeded
    before = everything(root)
    told = dict(zip(cr.SOURCES.values(), HOSTILE[name], strict=True))
    with pytest.raises(RangesError):
        cr.refresh(root, TODAY, system, asking(told))
    assert everything(root) == before
    assert len(system.used) == 1


@given(st.text(max_size=200))
def test_no_text_is_taken_for_a_list(text: str) -> None:
    try:
        found = cr.networks(text, 4)
    except RangesError:
        return
    assert all(0 <= network.prefixlen <= 32 for network in found)


def test_a_true_change_that_is_large_is_for_the_owner(seeded: tuple[Path, Played]) -> None:
    root, system = seeded
    told = {cr.SOURCES[4]: "\n".join(LINES4[:9]), cr.SOURCES[6]: GOOD6}
    with pytest.raises(RangesError, match="--trust-the-change"):
        cr.refresh(root, TODAY, system, asking(told))
    assert cr.refresh(root, TODAY, system, asking(told), trust=True)
    told[cr.SOURCES[4]] += "\n8.0.0.0/8"
    with pytest.raises(RangesError, match="larger"):
        cr.refresh(root, TODAY, system, asking(told), trust=True)


@pytest.mark.parametrize("who", ["refuses", "fails"])
def test_what_nginx_or_nft_refuses_is_put_back(who: str, seeded: tuple[Path, Played]) -> None:
    root, system = seeded
    before = everything(root)
    setattr(system, who, "nginx: no")
    told = texts(shipped())
    told[cr.SOURCES[4]] += "\n1.1.0.0/20"
    with pytest.raises(RangesError, match="nginx: no"):
        cr.refresh(root, TODAY, system, asking(told))
    assert everything(root) == before
    assert "1.1.0.0/20" not in system.used[-1], "the old one is used again"
    setattr(system, who, "")
    assert cr.refresh(root, TODAY, system, asking(told))


def test_a_server_that_had_none_has_none_after_a_refusal(tmp_path: Path) -> None:
    with pytest.raises(RangesError):
        cr.seed(tmp_path, SHIPPED, Played(tmp_path, refuses="no"))
    assert everything(tmp_path) == {}


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", '{"date": 1}', "\x00"])
def test_a_broken_file_is_mended_from_what_shipped(text: str, seeded: tuple[Path, Played]) -> None:
    root, system = seeded
    before = everything(root)
    for file in (cr.RANGES, cr.NGINX_FILE, cr.NFT_FILE):
        (root / file).write_text(text)
        assert cr.seed(root, SHIPPED, system)
        assert everything(root) == before


def test_a_run_that_was_cut_off_is_finished_by_the_next(seeded: tuple[Path, Played]) -> None:
    root, system = seeded
    before = everything(root)
    (root / cr.NFT_FILE).write_text("half")
    assert cr.refresh(root, TODAY, system, asking(texts(shipped())))
    assert everything(root) == before
    assert len(system.used) == 2


def test_what_cannot_be_fetched_is_said(seeded: tuple[Path, Played]) -> None:
    with pytest.raises(RangesError, match="cannot be fetched"):
        cr.fetch("https://127.0.0.1:9/ips-v4")
    root, _ = seeded
    before = everything(root)
    cr.SOURCES, kept = {4: "https://127.0.0.1:9/", 6: "https://127.0.0.1:9/"}, cr.SOURCES
    try:
        assert cr.main(["--root", str(root), "refresh"]) == 1
    finally:
        cr.SOURCES = kept
    told = everything(root)
    told.pop(".lock")
    assert told == before
