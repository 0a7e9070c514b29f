"""Which certificate of Cloudflare's Origin CA a server should show, and which have had their day.

Pure: what is wanted, what the server holds and what Cloudflare lists go in, a decision comes out.

A certificate is ours when it was made for the key that the server holds, which never leaves it;
or when the server holds it. Others of the zone are left alone, whatever names they carry.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from ansible.module_utils import certificates as pki
from cryptography import x509


@dataclass(frozen=True)
class Listed:
    """A certificate that Cloudflare knows and has not revoked."""

    id: str
    certificate: x509.Certificate


@dataclass(frozen=True)
class Decision:
    """What to do: show `keep`, or ask for another for the reason given; `superseded` are old."""

    keep: Listed | None
    why: str
    superseded: tuple[str, ...]


def wanted_names(domains: Iterable[str]) -> list[str]:
    """Return the names to ask for: in lower case, each once, in order."""
    return sorted({domain.strip().rstrip(".").lower() for domain in domains if domain.strip()})


def decide(
    request: x509.CertificateSigningRequest,
    current: x509.Certificate | None,
    listed: Iterable[Listed],
    wanted: list[str],
    renew_days: int,
    now: datetime,
) -> Decision:
    """Decide between the certificate the server holds, one asked for earlier, and a new one."""
    key = pki.public_key(request)
    held = pki.fingerprint(current) if current else ""
    ours = [
        one
        for one in listed
        if pki.public_key(one.certificate) == key or pki.fingerprint(one.certificate) == held
    ]
    # The one that is held goes first; then the one that lasts longest.
    ours.sort(
        key=lambda one: (
            pki.fingerprint(one.certificate) != held,
            -one.certificate.not_valid_after_utc.timestamp(),
        )
    )
    good = [one for one in ours if not _fault(one.certificate, key, wanted, renew_days, now)]
    keep = good[0] if good else None
    if keep:
        why = (
            ""
            if pki.fingerprint(keep.certificate) == held
            else "asked for before, not put in place"
        )
    elif not current:
        why = "the server has none"
    else:
        why = _fault(current, key, wanted, renew_days, now) or "Cloudflare revoked it"
    return Decision(keep, why, tuple(one.id for one in ours if one is not keep))


def _fault(
    certificate: x509.Certificate, key: bytes, wanted: list[str], renew_days: int, now: datetime
) -> str:
    """Return why a certificate will not do, or an empty text."""
    if pki.public_key(certificate) != key:
        return "it does not belong to the server's key"
    if pki.names(certificate) != set(wanted):
        return "the names have changed"
    left = pki.days_left(certificate, now)
    if left < renew_days:
        return f"it ends in {left:.0f} days" if left > 0 else "it has ended"
    return ""
