"""Authenticated Origin Pulls with a certificate of the zone's own.

A certificate is deployed after `zone.extra["deploys_after"]` looks at it (2 when not said).
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from cf_routes import RefusedError, Reply, Request, route
from cf_state import Zone, new_id, now
from cryptography import x509
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
)

EDIT = "Zone > SSL and Certificates > Edit"
READ = "Zone > SSL and Certificates > Read"
BASE = "/zones/{zone_id}/origin_tls_client_auth"


def kept(zone: Zone) -> dict[str, dict[str, Any]]:
    """Return the zone's client certificates, by id, without their keys."""
    found: dict[str, dict[str, Any]] = zone.extra.setdefault("pulls", {})
    return found


def advance(zone: Zone, one: dict[str, Any]) -> dict[str, Any]:
    """Let a certificate be deployed by and by; return it as it was."""
    shown = dict(one)
    zone.extra[one["id"]] = zone.extra.get(one["id"], 0) + 1
    seen_enough = zone.extra[one["id"]] >= zone.extra.get("deploys_after", 2)
    if seen_enough and one["status"] == "pending_deployment":
        one["status"] = zone.extra.get("deploys_as", "active")
    return shown


@route("GET", f"{BASE}/settings", needs=READ)
def get_settings(request: Request) -> Reply:
    return Reply({"enabled": request.zone.extra.get("pulls_enabled", False)})


@route("PUT", f"{BASE}/settings", needs=EDIT)
def put_settings(request: Request) -> Reply:
    request.zone.extra["pulls_enabled"] = bool(request.body["enabled"])
    return get_settings(request)


@route("GET", BASE, needs=READ)
def list_certificates(request: Request) -> Reply:
    return Reply([advance(request.zone, one) for one in kept(request.zone).values()])


@route("POST", BASE, needs=EDIT)
def upload(request: Request) -> Reply:
    try:
        certificate = x509.load_pem_x509_certificate(request.body["certificate"].encode())
        key = load_pem_private_key(request.body["private_key"].encode(), password=None)
    except (KeyError, ValueError):
        raise RefusedError(400, 1412, "Could not parse the uploaded certificate or key") from None
    form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if key.public_key().public_bytes(*form) != certificate.public_key().public_bytes(*form):
        raise RefusedError(400, 1414, "The private key does not match the uploaded certificate")
    if certificate.not_valid_after_utc < datetime.now(UTC):
        raise RefusedError(400, 1411, "The uploaded certificate has expired")
    text = certificate.public_bytes(Encoding.PEM).decode()
    if any(one["certificate"] == text for one in kept(request.zone).values()):
        raise RefusedError(400, 1406, "This certificate has already been submitted")
    made = {
        "id": new_id(),
        "certificate": text,
        "issuer": certificate.issuer.rfc4514_string(),
        "signature": "ECDSAWithSHA256",
        "status": "pending_deployment",
        "expires_on": certificate.not_valid_after_utc.isoformat(),
        "uploaded_on": now(),
    }
    kept(request.zone)[made["id"]] = made
    # What a careless caller would print: the real one gives the key back too.
    return Reply({**made, "private_key": request.body["private_key"]})


def known(request: Request) -> dict[str, Any]:
    """Return the certificate of the path."""
    try:
        return kept(request.zone)[request.params["certificate_id"]]
    except KeyError:
        raise RefusedError(404, 1402, "The client certificate could not be found") from None


@route("GET", f"{BASE}/{{certificate_id}}", needs=READ)
def get_certificate(request: Request) -> Reply:
    return Reply(advance(request.zone, known(request)))


@route("DELETE", f"{BASE}/{{certificate_id}}", needs=EDIT)
def delete_certificate(request: Request) -> Reply:
    one = known(request)
    del kept(request.zone)[one["id"]]
    return Reply({**one, "status": "pending_deletion"})
