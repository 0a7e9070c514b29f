"""The Origin CA: it signs requests, lists what it signed for a zone, and revokes.

Not a zone's own part of the API: `POST /certificates` finds the zones by the names asked for.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

from cf_routes import RefusedError, Reply, Request, page, route
from cf_state import Zone
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

EDIT = "Zone > SSL and Certificates > Edit"
VALIDITIES = (7, 30, 90, 365, 730, 1095, 5475)


def need(request: Request) -> None:
    """Refuse as the Origin CA does, which has an error of its own for it."""
    if EDIT not in request.permissions:
        raise RefusedError(403, 1016, "User is not authorized to perform this action")


@cache
def authority() -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    """Return the Origin CA of this process."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "CloudFlare, Inc.")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=7300))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    return key, made


def sign(request: x509.CertificateSigningRequest, names: list[str], days: int) -> x509.Certificate:
    """Sign a request: the names are those of the call, whatever the request says."""
    key, issuer = authority()
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "CloudFlare Origin")]))
        .issuer_name(issuer.subject)
        .public_key(request.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + timedelta(days=days))
        .add_extension(
            x509.SubjectAlternativeName([x509.DNSName(n) for n in names]), critical=False
        )
        .sign(key, hashes.SHA256())
    )


def kept(zone: Zone) -> dict[str, dict[str, Any]]:
    """Return what a zone has, by id."""
    found: dict[str, dict[str, Any]] = zone.extra.setdefault("certificates", {})
    return found


def zone_of(request: Request, name: str) -> Zone:
    """Return the zone that a name belongs to."""
    for zone in request.world.zones.values():
        if name == zone.name or name.endswith("." + zone.name):
            return zone
    raise RefusedError(
        400,
        1010,
        f"Failed to validate requested hostname {name}: This zone is either not part of your "
        "account, or you do not have access to it.",
    )


@route("GET", "/certificates")
def list_certificates(request: Request) -> Reply:
    need(request)
    zone = request.world.zones.get(request.query.get("zone_id", ""))
    if not zone:
        raise RefusedError(400, 1003, "zone_id is required")
    return page(request, list(kept(zone).values()), most=50)


@route("POST", "/certificates")
def create_certificate(request: Request) -> Reply:
    need(request)
    body = request.body
    names = body.get("hostnames") or []
    if not names:
        raise RefusedError(400, 1004, "Hostnames are required")
    zones = [zone_of(request, name) for name in names]
    days = body.get("requested_validity", 5475)
    if days not in VALIDITIES:
        raise RefusedError(400, 1005, "Failed to validate requested_validity")
    try:
        asked = x509.load_pem_x509_csr(body["csr"].encode())
    except (KeyError, ValueError):
        raise RefusedError(400, 1002, "Failed to parse the CSR") from None
    elliptic = isinstance(asked.public_key(), ec.EllipticCurvePublicKey)
    if body.get("request_type") != ("origin-ecc" if elliptic else "origin-rsa"):
        raise RefusedError(400, 1006, "The key of the CSR is not of the type that was requested")
    signed = sign(asked, names, days)
    made = {
        "id": str(signed.serial_number),
        "certificate": signed.public_bytes(Encoding.PEM).decode(),
        "csr": body["csr"],
        "hostnames": names,
        "request_type": body["request_type"],
        "requested_validity": days,
        "expires_on": signed.not_valid_after_utc.strftime("%Y-%m-%d %H:%M:%S +0000 UTC"),
    }
    kept(zones[0])[made["id"]] = made
    return Reply(made)


def holder(request: Request) -> dict[str, dict[str, Any]]:
    """Return what the zone of the path's certificate has."""
    for zone in request.world.zones.values():
        if request.params["certificate_id"] in kept(zone):
            return kept(zone)
    raise RefusedError(404, 1101, "Failed to find the certificate")


@route("GET", "/certificates/{certificate_id}")
def get_certificate(request: Request) -> Reply:
    need(request)
    return Reply(holder(request)[request.params["certificate_id"]])


@route("DELETE", "/certificates/{certificate_id}")
def revoke_certificate(request: Request) -> Reply:
    need(request)
    gone = holder(request).pop(request.params["certificate_id"])
    return Reply({"id": gone["id"], "revoked_at": datetime.now(UTC).isoformat()})
