"""The client certificate that Cloudflare shows the origin, and the authority behind it.

Pure: what the folder on the controller holds and what Cloudflare lists go in, a decision comes out.

A certificate is ours when our authority's key signed it. The authority stays the same for as long
as its file does, so that nginx trusts the next certificate before it is there.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from ansible.module_utils import certificates as pki
from cryptography import x509

AUTHORITY_DAYS = 7300
# States of a certificate at Cloudflare, as its API names them.
ACTIVE, DEPLOYING = "active", ("initializing", "pending_deployment")
FAILED, GOING = ("deployment_timed_out",), ("pending_deletion", "deleted", "deletion_timed_out")


@dataclass(frozen=True)
class Uploaded:
    """A client certificate that Cloudflare holds for the zone."""

    id: str
    certificate: x509.Certificate | None
    status: str


@dataclass(frozen=True)
class Zone:
    """What the zone holds: the wanted certificate where it is there, older ones, others' ones."""

    wanted: Uploaded | None
    superseded: tuple[Uploaded, ...]
    foreign: tuple[Uploaded, ...]


def client_fault(bundle: str, authority: x509.Certificate, renew_days: int, now: datetime) -> str:
    """Return why the client certificate on the controller will not do, or an empty text."""
    if not bundle:
        return "there is none"
    try:
        _, certificate = pki.split(bundle)
    except (ValueError, TypeError):
        return "its file cannot be read"
    if not pki.issued_by(certificate, authority):
        return "it is of another authority"
    left = pki.days_left(certificate, now)
    if left < renew_days:
        return f"it ends in {left:.0f} days" if left > 0 else "it has ended"
    return ""


def sort_out(
    uploaded: Iterable[Uploaded],
    authority: x509.Certificate | None,
    wanted: x509.Certificate | None,
) -> Zone:
    """Tell ours from others', and the wanted one from those before it."""
    mine: Uploaded | None = None
    superseded, foreign = [], []
    for one in uploaded:
        if one.status in GOING:
            continue
        ours = bool(one.certificate and authority and pki.issued_by(one.certificate, authority))
        same = bool(
            ours
            and wanted
            and one.certificate
            and pki.fingerprint(one.certificate) == pki.fingerprint(wanted)
        )
        if same and not mine and one.status not in FAILED:
            mine = one
        elif ours:
            superseded.append(one)
        else:
            foreign.append(one)
    return Zone(mine, tuple(superseded), tuple(foreign))
