"""What a certificate has to be before nginx reads it, and that it comes into place whole."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import certificate
import pytest
from certificate import main
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import NameOID

Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
NAMES = ("chat.example.org", "*.api.example.org")


def text_of(key: Key, passphrase: bytes = b"") -> str:
    """A key as PEM."""
    lock = BestAvailableEncryption(passphrase) if passphrase else NoEncryption()
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, lock).decode()


@dataclass
class Made:
    """A certificate and its key."""

    name: x509.Name
    key: Key
    pem: str


def make(
    common: str,
    signer: Made | None = None,
    names: tuple[str, ...] = (),
    days: tuple[int, int] = (-1, 90),
    key: Key | None = None,
) -> Made:
    """Sign a certificate; an authority where it has no names."""
    own = key or ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])
    now = datetime.now(UTC)
    built = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(signer.name if signer else name)
        .public_key(own.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + timedelta(days=min(days[0], days[1] - 1)))
        .not_valid_after(now + timedelta(days=days[1]))
        .add_extension(x509.BasicConstraints(ca=not names, path_length=None), critical=True)
    )
    if names:
        found = [x509.DNSName(one) for one in names]
        built = built.add_extension(x509.SubjectAlternativeName(found), critical=False)
    signed = built.sign(signer.key if signer else own, hashes.SHA256())
    return Made(name, own, signed.public_bytes(Encoding.PEM).decode())


@pytest.fixture(scope="module")
def root() -> Made:
    return make("root")


@pytest.fixture(scope="module")
def middle(root: Made) -> Made:
    return make("middle", root, days=(-1, 400))


@dataclass
class Desk:
    """A folder with files to install from and one to install into."""

    path: Path
    capsys: pytest.CaptureFixture[str]
    said: str = ""

    @property
    def into(self) -> Path:
        return self.path / "tls"

    def install(self, chain: str, key: str, *options: str) -> int:
        """Install, and keep what was said."""
        (self.path / "given.crt").write_text(chain)
        (self.path / "given.key").write_text(key)
        files = [str(self.path / "given.crt"), str(self.path / "given.key")]
        code = main(["install", *files, "--into", str(self.into), *options])
        out, err = self.capsys.readouterr()
        self.said = out + err
        return code


@pytest.fixture
def desk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Desk:
    return Desk(tmp_path, capsys)


def served(folder: Path) -> tuple[str, str]:
    return (folder / "server.crt").read_text(), (folder / "server.key").read_text()


@pytest.mark.parametrize("kind", ["ec", "rsa"])
def test_a_good_pair_is_put_in_place_and_then_left(desk: Desk, middle: Made, kind: str) -> None:
    key: Key = (
        rsa.generate_private_key(65537, 2048)
        if kind == "rsa"
        else ec.generate_private_key(ec.SECP384R1())
    )
    leaf = make("chat.example.org", middle, NAMES, key=key)
    chain = leaf.pem + middle.pem
    asked = [f"--name={name}" for name in NAMES]
    assert desk.install(chain, text_of(leaf.key), *asked) == 0, desk.said
    assert desk.said == "installed\n"
    assert served(desk.into) == (chain, text_of(leaf.key))
    before = (desk.into / "current").readlink()
    assert desk.install(chain, text_of(leaf.key), *asked) == 0
    assert desk.said == "unchanged\n"
    assert (desk.into / "current").readlink() == before


def test_nobody_but_root_reads_the_key_whatever_the_umask(desk: Desk, middle: Made) -> None:
    leaf = make("a", middle, NAMES)
    old = os.umask(0o000)
    try:
        desk.install(leaf.pem + middle.pem, text_of(leaf.key))
        os.umask(0o077)
        other = make("b", middle, NAMES)
        desk.install(other.pem + middle.pem, text_of(other.key))
    finally:
        os.umask(old)
    modes = {
        one.name: one.stat().st_mode & 0o777 for one in (desk.into / "pairs").rglob("server.*")
    }
    assert modes == {"server.crt": 0o644, "server.key": 0o600}
    assert {one.stat().st_mode & 0o777 for one in (desk.into / "pairs").iterdir()} == {0o755}


def test_checking_changes_nothing(desk: Desk, middle: Made) -> None:
    leaf = make("a", middle, NAMES)
    assert desk.install(leaf.pem + middle.pem, text_of(leaf.key), "--check") == 0
    assert desk.said == "installed\n"
    assert not desk.into.exists()


def test_both_files_change_at_once_and_the_pair_before_is_kept(
    desk: Desk, middle: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = [make(name, middle, NAMES) for name in "abcd"]
    chains = {one.pem + middle.pem: text_of(one.key) for one in pairs}
    seen = []
    link = certificate.link

    def watched(path: Path, target: str) -> None:
        for moment in ("before", "after"):
            if (desk.into / "server.crt").exists() and (desk.into / "server.key").exists():
                chain, key = served(desk.into)
                seen.append(chains[chain] == key)
            if moment == "before":
                link(path, target)

    monkeypatch.setattr(certificate, "link", watched)
    for chain, key in chains.items():
        assert desk.install(chain, key) == 0
    assert len(seen) > 10
    assert all(seen)
    assert len(list((desk.into / "pairs").iterdir())) == 2


def test_plain_files_of_an_earlier_version_are_replaced(desk: Desk, middle: Made) -> None:
    desk.into.mkdir()
    (desk.into / "server.crt").write_text("old")
    (desk.into / "server.key").write_text("old")
    leaf = make("a", middle, NAMES)
    assert desk.install(leaf.pem + middle.pem, text_of(leaf.key)) == 0
    assert served(desk.into) == (leaf.pem + middle.pem, text_of(leaf.key))


Spoil = Callable[[Made, Made, Made], tuple[str, str]]


def old_leaf(root: Made, middle: Made, leaf: Made) -> tuple[str, str]:
    old = make("old", middle, NAMES, days=(-30, -1))
    return old.pem + middle.pem, text_of(old.key)


def early_leaf(root: Made, middle: Made, leaf: Made) -> tuple[str, str]:
    early = make("early", middle, NAMES, days=(2, 30))
    return early.pem + middle.pem, text_of(early.key)


def old_authority(root: Made, middle: Made, leaf: Made) -> tuple[str, str]:
    old = make("old authority", root, days=(-30, -1))
    one = make("one", old, NAMES)
    return one.pem + old.pem, text_of(one.key)


def same_name_other_key(root: Made, middle: Made, leaf: Made) -> tuple[str, str]:
    """An authority of the right name that did not sign: names alone prove nothing."""
    return leaf.pem + make("middle", root).pem, text_of(leaf.key)


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda r, m, leaf: (leaf.pem + m.pem, text_of(m.key)), "out of order: the server's own"),
        (lambda r, m, leaf: (leaf.pem + m.pem, text_of(r.key)), "is not the key of this"),
        (lambda r, m, leaf: (leaf.pem + m.pem, text_of(leaf.key, b"secret")), "has a passphrase"),
        (lambda r, m, leaf: (leaf.pem + m.pem, "nonsense"), "holds no private key"),
        (lambda r, m, leaf: (leaf.pem + text_of(leaf.key), text_of(leaf.key)), "belongs in the"),
        (lambda r, m, leaf: ("nonsense", text_of(leaf.key)), "holds no certificate"),
        (lambda r, m, leaf: (leaf.pem.replace("MII", "MIJ", 1), text_of(leaf.key)), "cannot read"),
        (lambda r, m, leaf: (leaf.pem + r.pem + m.pem, text_of(leaf.key)), "did not sign it"),
        (lambda r, m, leaf: (m.pem + leaf.pem, text_of(leaf.key)), "has to be the first"),
        (same_name_other_key, "did not sign it"),
        (old_leaf, "CN=old ended on"),
        (early_leaf, "CN=early only begins on"),
        (old_authority, "CN=old authority ended on"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_unfit_is_told_and_not_installed(
    desk: Desk, root: Made, middle: Made, spoil: Spoil, told: str
) -> None:
    good = make("good", middle, NAMES)
    desk.install(good.pem + middle.pem, text_of(good.key))
    leaf = make("chat.example.org", middle, NAMES)
    assert desk.install(*spoil(root, middle, leaf)) == 1
    assert told in desk.said
    assert len(desk.said.splitlines()) == 1
    assert served(desk.into) == (good.pem + middle.pem, text_of(good.key))


@pytest.mark.parametrize(
    ("name", "covered"),
    [
        ("chat.example.org", True),
        ("*.api.example.org", True),
        ("eu.api.example.org", True),
        ("api.example.org", False),
        ("a.b.api.example.org", False),
        ("*.example.org", False),
        ("evil.org", False),
        ("192.0.2.1", False),
        ("2001:db8::1", False),
    ],
)
def test_every_name_has_to_be_covered(desk: Desk, middle: Made, name: str, covered: bool) -> None:
    leaf = make("chat.example.org", middle, NAMES)
    code = desk.install(leaf.pem + middle.pem, text_of(leaf.key), f"--name={name}")
    assert code == (0 if covered else 1)
    assert (f"does not cover {name}" in desk.said) is not covered


def test_all_reasons_are_told_at_once(desk: Desk, middle: Made) -> None:
    leaf = make("old", middle, NAMES, days=(-30, -1))
    assert desk.install(leaf.pem, text_of(leaf.key), "--name=x.org", "--name=y.org") == 1
    assert len(desk.said.splitlines()) == 3


def test_a_chain_without_its_authority_is_remarked_on(desk: Desk, middle: Made) -> None:
    leaf = make("chat.example.org", middle, NAMES)
    assert desk.install(leaf.pem, text_of(leaf.key)) == 0
    assert "without those of its authority" in desk.said


def test_status_tells_how_long_it_is_good_for(
    desk: Desk, middle: Made, capsys: pytest.CaptureFixture[str]
) -> None:
    leaf = make("chat.example.org", middle, NAMES, days=(-1, 20))
    desk.install(leaf.pem + middle.pem, text_of(leaf.key))
    file = str(desk.into / "server.crt")
    assert main(["status", file]) == 0
    assert "good for 20 days" in capsys.readouterr().out
    assert main(["status", file, "--days=14"]) == 0
    capsys.readouterr()
    assert main(["status", file, "--days=21"]) == 1
    assert "less than 21" in capsys.readouterr().err
    old = make("old", middle, NAMES, days=(-30, -1))
    (desk.path / "old.crt").write_text(old.pem)
    assert main(["status", str(desk.path / "old.crt")]) == 1
    assert "ended on" in capsys.readouterr().err
    assert main(["status", str(desk.path / "none.crt")]) == 1
    assert "cannot be read" in capsys.readouterr().err


def test_nginx_is_asked_to_reload_only_when_something_changed(
    desk: Desk, middle: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    run = subprocess.run

    def watched(command: list[str], *args: object, **how: object) -> object:
        if command[0] != "systemctl":
            return run(command, *args, **how)  # type: ignore[call-overload]
        asked.append(command[1])
        code = 1 if command[1] == "reload" and len(asked) > 2 else 0
        return subprocess.CompletedProcess(command, code, "", "nginx: bad configuration")

    monkeypatch.setattr(subprocess, "run", watched)
    leaf = make("a", middle, NAMES)
    for _ in range(2):
        assert desk.install(leaf.pem + middle.pem, text_of(leaf.key), "--reload") == 0
    assert asked == ["is-active", "reload"]
    other = make("b", middle, NAMES)
    assert desk.install(other.pem + middle.pem, text_of(other.key), "--reload") == 1
    assert "did not reload and goes on as before: nginx: bad configuration" in desk.said
