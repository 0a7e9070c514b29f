"""X.509 for the edge: what a certificate says, and a small authority of our own.

Pure: PEM in, PEM out. The time is given, so that an end can be tested without waiting for it.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

# A clock that is behind on the other side must not refuse what was made a moment ago.
BACKDATE = timedelta(hours=1)


def read(pem: str) -> x509.Certificate | None:
    """Return the first certificate of a PEM text, or None where there is none that can be read."""
    try:
        return x509.load_pem_x509_certificate(pem.encode())
    except ValueError:
        return None


def public_key(holder: x509.Certificate | x509.CertificateSigningRequest) -> bytes:
    """Return the public key of a certificate or a request, for comparing."""
    return holder.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def names(certificate: x509.Certificate) -> set[str]:
    """Return the DNS names that a certificate is good for."""
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return set()
    return {name.lower() for name in found.value.get_values_for_type(x509.DNSName)}


def days_left(certificate: x509.Certificate, now: datetime) -> float:
    """Return how many days a certificate is still good for; below zero once it has ended."""
    return (certificate.not_valid_after_utc - now) / timedelta(days=1)


def fingerprint(certificate: x509.Certificate) -> str:
    """Return the SHA-256 of a certificate, as hex digits."""
    return certificate.fingerprint(hashes.SHA256()).hex()


def issued_by(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    """Tell whether an authority's key signed a certificate. Names alone prove nothing."""
    try:
        certificate.verify_directly_issued_by(authority)
    except Exception:  # ValueError, TypeError or InvalidSignature: whichever, it did not
        return False
    return True


def make_authority(name: str, days: int, now: datetime) -> str:
    """Return key and certificate, in this order, of an authority that may sign leaves only."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    certificate = (
        _unsigned(subject, subject, key.public_key(), days, now)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(key_cert_sign=True, crl_sign=True), critical=True)
        .sign(key, hashes.SHA256())
    )
    return _bundle(key, certificate)


def make_client(authority_pem: str, name: str, days: int, now: datetime) -> str:
    """Return key and certificate, in this order, of a client that an authority vouches for.

    Raises ValueError when `authority_pem` holds no key and certificate that belong together.
    """
    authority_key, authority = split(authority_pem)
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    issuer = authority_key.public_key()
    certificate = (
        _unsigned(subject, authority.subject, key.public_key(), days, now)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer), critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    return _bundle(key, certificate)


def split(bundle: str) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    """Return key and certificate of a PEM text that holds both.

    Raises ValueError when one is missing, or when they do not belong together.
    """
    key = load_pem_private_key(bundle.encode(), password=None)
    certificate = x509.load_pem_x509_certificate(bundle.encode())
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError("the key is none on an elliptic curve")
    mine = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if mine != public_key(certificate):
        raise ValueError("key and certificate do not belong together")
    return key, certificate


def key_pem(key: ec.EllipticCurvePrivateKey) -> str:
    """Return a private key as PKCS #8."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


def pem(certificate: x509.Certificate) -> str:
    """Return a certificate as PEM."""
    return certificate.public_bytes(Encoding.PEM).decode()


def _bundle(key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> str:
    return key_pem(key) + pem(certificate)


def _unsigned(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int, now: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATE)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _usage(**allowed: bool) -> x509.KeyUsage:
    all_uses = dict.fromkeys(
        (
            "digital_signature", "content_commitment", "key_encipherment", "data_encipherment",
            "key_agreement", "key_cert_sign", "crl_sign", "encipher_only", "decipher_only",
        ),
        False,
    )  # fmt: skip
    return x509.KeyUsage(**{**all_uses, **allowed})
