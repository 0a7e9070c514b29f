"""What a certificate says, what our small authority makes, and how secrets are kept."""

from __future__ import annotations

import stat
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import certificates as pki
import pytest
import secret_files
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

NOW = datetime.now(UTC)


def write(path: Path, text: str) -> Path:
    """Write a file and return its path."""
    path.write_text(text)
    return path


def test_openssl_trusts_a_client_of_our_authority_as_a_client_only(tmp_path: Path) -> None:
    authority = pki.make_authority("authority", 7300, NOW)
    client = pki.make_client(authority, "client", 1095, NOW)
    trusted = write(tmp_path / "ca.pem", pki.pem(pki.split(authority)[1]))
    asked = write(tmp_path / "client.pem", pki.pem(pki.split(client)[1]))
    for purpose, accepted in (("sslclient", True), ("sslserver", False)):
        told = subprocess.run(
            ["openssl", "verify", "-x509_strict", "-purpose", purpose, "-CAfile", trusted, asked],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert (told.returncode == 0) == accepted, told.stderr


def test_an_authority_of_the_same_name_is_another() -> None:
    ours, theirs = (pki.make_authority("same", 7300, NOW) for _ in range(2))
    client = pki.split(pki.make_client(ours, "client", 30, NOW))[1]
    assert pki.issued_by(client, pki.split(ours)[1])
    assert not pki.issued_by(client, pki.split(theirs)[1])


def test_the_end_is_told_in_days() -> None:
    made = pki.split(pki.make_authority("a", 30, NOW))[1]
    assert 29 < pki.days_left(made, NOW) <= 30
    assert pki.days_left(made, NOW + timedelta(days=31)) < 0


def test_a_key_of_another_certificate_is_refused() -> None:
    one, other = (pki.make_authority("a", 30, NOW) for _ in range(2))
    mixed = pki.key_pem(pki.split(one)[0]) + pki.pem(pki.split(other)[1])
    with pytest.raises(ValueError, match="belong together"):
        pki.split(mixed)


@pytest.mark.parametrize("text", ["", "nothing", "-----BEGIN CERTIFICATE-----\nAA\n"])
def test_what_is_no_certificate_is_none(text: str) -> None:
    assert pki.read(text) is None


def test_names_are_the_dns_names_in_lower_case() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([])
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, NOW, NOW)
    bare = builder.sign(key, pki.hashes.SHA256())
    assert pki.names(bare) == set()
    named = builder.add_extension(
        x509.SubjectAlternativeName([x509.DNSName("A.Example"), x509.DNSName("*.b.example")]),
        critical=False,
    ).sign(key, pki.hashes.SHA256())
    assert pki.names(named) == {"a.example", "*.b.example"}


def test_a_secret_is_its_owners_alone_and_whole(tmp_path: Path) -> None:
    path = tmp_path / "folder/secret"
    assert secret_files.read(path) == ""
    secret_files.write(path, "one")
    secret_files.write(path, "two")
    assert secret_files.read(path) == "two"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert [p.name for p in path.parent.iterdir()] == ["secret"]
