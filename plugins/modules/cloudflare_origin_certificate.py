#!/usr/bin/python
"""A certificate of Cloudflare's Origin CA for a key that stays on the server."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from ansible.module_utils import certificates as pki
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.cloudflare_api import (
    OPTIONS,
    CloudflareApiError,
    connect,
    explained,
    find_zone,
)
from ansible.module_utils.origin_certificate import Listed, decide, wanted_names
from cryptography import x509

DOCUMENTATION = r"""
---
module: cloudflare_origin_certificate
short_description: A certificate of Cloudflare's Origin CA for a key that stays on the server
description:
  - Runs on the controller, which holds the API token. It gets a request (CSR) and the certificate
    that the server holds, and gives back the one that the server should show.
  - Asks for a certificate only when the held one ends soon, carries other names, is of another
    key or was revoked, and when none that was asked for before will do.
  - Revokes nothing with C(state=present). With C(state=only) it revokes those it made before the
    held one, with C(state=absent) all that it made. A certificate counts as made by it when it is
    of the request's key or when the server holds it.
options:
  request:
    description: The certificate signing request, as PEM.
    type: str
    required: true
  certificate:
    description: The certificate that the server holds, as PEM. Empty when it has none.
    type: str
    default: ""
  domains:
    description: Names that the certificate is for. A wildcard stands for one level.
    type: list
    elements: str
    default: []
  validity_days:
    description: How long a new one is good for.
    type: int
    choices: [7, 30, 90, 365, 730, 1095, 5475]
    default: 1095
  renew_days:
    description: Another is asked for when fewer days than these are left.
    type: int
    default: 365
  superseded:
    description: Certificates named by C(state=present) in this run, for C(state=only).
    type: list
    elements: str
    default: []
  state:
    description: What should be.
    type: str
    choices: [present, only, absent]
    default: present
extends_documentation_fragment: [cloudflare_api]
author: Millrace
"""

RETURN = r"""
certificate:
  description: What the server should show, as PEM. Empty in check mode when it would be asked for.
  type: str
  returned: with state=present
why:
  description: Why it is not the one the server holds. Empty when it is.
  type: str
  returned: with state=present
superseded:
  description: Ours, but no longer wanted.
  type: list
  returned: with state=present
revoked:
  description: What was revoked, or would be in check mode.
  type: list
  returned: with state=only and state=absent
"""


def list_certificates(client: Any, zone_id: str) -> list[Listed]:
    """Return what Cloudflare lists for a zone and has not revoked."""
    found = []
    with explained("Origin CA certificates"):
        for one in client.origin_ca_certificates.list(zone_id=zone_id, per_page=50):
            revoked = str(getattr(one, "revoked_at", None) or "")
            certificate = pki.read(one.certificate or "")
            # A zero time is how the API says never.
            if one.id and certificate and (not revoked or revoked.startswith("0001-")):
                found.append(Listed(one.id, certificate))
    return found


def ask(
    client: Any, request: x509.CertificateSigningRequest, text: str, names: list[str], days: int
) -> Listed:
    """Ask for a certificate. Raises CloudflareApiError when what comes is not for the key."""
    with explained(f"Origin CA certificate for {', '.join(names)}"):
        made = client.origin_ca_certificates.create(
            csr=text, hostnames=names, request_type="origin-ecc", requested_validity=days
        )
    certificate = pki.read((made and made.certificate) or "")
    if not certificate or pki.public_key(certificate) != pki.public_key(request):
        raise CloudflareApiError(
            "broken",
            "Origin CA certificate: what Cloudflare sent is none for the server's key. Run again",
        )
    return Listed(made.id or "", certificate)


def revoke(client: Any, ids: list[str]) -> None:
    """Revoke certificates; one that is gone already is as good."""
    for one in ids:
        try:
            with explained(f"revoking Origin CA certificate {one}"):
                client.origin_ca_certificates.delete(one)
        except CloudflareApiError as problem:
            if problem.kind != "missing":
                raise


def ensure(client: Any, params: dict[str, Any], check_mode: bool, now: datetime) -> dict[str, Any]:
    """Do what `state` says and return what the module returns. Raises CloudflareApiError."""
    try:
        request = x509.load_pem_x509_csr(params["request"].encode())
    except ValueError:
        raise CloudflareApiError("invalid", "request: this is no certificate request") from None
    current = pki.read(params["certificate"])
    names = wanted_names(params["domains"])
    if params["state"] == "present" and not names:
        raise CloudflareApiError(
            "invalid",
            "Origin CA certificate: no names to ask for. Put the service's names into tls_domains",
        )
    listed = list_certificates(client, find_zone(client, params["zone"]).id)
    decision = decide(request, current, listed, names, params["renew_days"], now)
    if params["state"] == "present":
        keep = decision.keep
        if not keep and not check_mode:
            keep = ask(client, request, params["request"], names, params["validity_days"])
        return {
            "changed": bool(decision.why),
            "why": decision.why,
            "certificate": pki.pem(keep.certificate) if keep else "",
            "superseded": list(decision.superseded),
        }
    old = list(decision.superseded)
    if params["state"] == "absent" and decision.keep:
        old.append(decision.keep.id)
    if params["state"] == "only":
        # An old one of another key is known by its id alone, once the server shows the new one.
        known = {one.id for one in listed} - {decision.keep.id if decision.keep else ""}
        old += [one for one in params["superseded"] if one in known and one not in old]
        if not decision.keep or decision.why:
            raise CloudflareApiError(
                "invalid", "Origin CA certificate: the server does not hold the new one yet"
            )
    if not check_mode:
        revoke(client, old)
    return {"changed": bool(old), "revoked": old}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            **OPTIONS,
            "request": {"type": "str", "required": True},
            "certificate": {"type": "str", "default": ""},
            "domains": {"type": "list", "elements": "str", "default": []},
            "validity_days": {
                "type": "int",
                "choices": [7, 30, 90, 365, 730, 1095, 5475],
                "default": 1095,
            },
            "renew_days": {"type": "int", "default": 365},
            "superseded": {"type": "list", "elements": "str", "default": []},
            "state": {
                "type": "str",
                "choices": ["present", "only", "absent"],
                "default": "present",
            },
        },
        supports_check_mode=True,
    )
    params = module.params
    if params["renew_days"] >= params["validity_days"]:
        module.fail_json(msg="renew_days has to be less than validity_days")
    try:
        client = connect(params["api_token"], url=params["api_url"])
        result = ensure(client, params, module.check_mode, datetime.now(UTC))
    except CloudflareApiError as problem:
        module.fail_json(msg=problem.line)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
