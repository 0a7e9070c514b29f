#!/usr/bin/python
"""Let Cloudflare show the origin a client certificate of the zone's own."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ansible.module_utils import certificates as pki
from ansible.module_utils import secret_files
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.cloudflare_api import (
    OPTIONS,
    CloudflareApiError,
    connect,
    explained,
    find_zone,
)
from ansible.module_utils.origin_pulls import (
    ACTIVE,
    AUTHORITY_DAYS,
    DEPLOYING,
    FAILED,
    Uploaded,
    client_fault,
    sort_out,
)

DOCUMENTATION = r"""
---
module: cloudflare_origin_pulls
short_description: Let Cloudflare show the origin a client certificate of the zone's own
description:
  - Zone-level Authenticated Origin Pulls. Runs on the controller, which keeps the authority and
    the client's key; the origin gets the authority's certificate only, which is returned.
  - Returns once Cloudflare says that the certificate is deployed, so that an origin which demands
    it from then on locks nobody out. It makes the next one before the old one ends, and takes the
    old one away when the next is deployed.
  - With C(state=prepared) it only makes the authority, and asks Cloudflare nothing, so that an
    origin can trust it beside the one before it.
  - Touches no certificate that its authority did not sign. Where there are such, it stops, since
    Cloudflare would show one certificate to all origins of the zone.
options:
  folder:
    description: Folder on this machine for the authority and the client's key. One for a zone.
    type: path
    required: true
  validity_days:
    description: How long a client certificate is good for.
    type: int
    default: 1095
  renew_days:
    description: The next one is made when fewer days than these are left.
    type: int
    default: 365
  wait_seconds:
    description: How long to wait for Cloudflare to deploy the certificate.
    type: int
    default: 600
  settle_seconds:
    description: How long to wait after origin pulls were switched on, for all of the edge to know.
    type: int
    default: 30
  beside_others:
    description: Go on where the zone has client certificates of somebody else.
    type: bool
    default: false
  state:
    description: What should be.
    type: str
    choices: [prepared, present, absent]
    default: present
extends_documentation_fragment: [cloudflare_api]
author: Millrace
"""

RETURN = r"""
authority:
  description: The certificate that the origin has to trust, as PEM. Empty in check mode before the
    first run.
  type: str
  returned: with state=prepared and state=present
done:
  description: What was done, or would be in check mode, a line each.
  type: list
  returned: always
"""

POLL_SECONDS = 5.0
AUTHORITY_FILE = "origin_pull_authority.pem"
CLIENT_FILE = "origin_pull_client.pem"


class Pulls:
    """One run: what is in the folder, what is at Cloudflare, and what was done about it."""

    def __init__(
        self,
        client: Any,
        params: dict[str, Any],
        check_mode: bool,
        now: datetime,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.api = client.origin_tls_client_auth
        self.params = params
        prepared = params["state"] == "prepared"
        self.zone_id = "" if prepared else find_zone(client, params["zone"]).id
        self.check_mode = check_mode
        self.now = now
        self.sleep = sleep
        self.authority_file = Path(params["folder"]) / AUTHORITY_FILE
        self.client_file = Path(params["folder"]) / CLIENT_FILE
        self.done: list[str] = []

    def uploaded(self) -> list[Uploaded]:
        """Return what Cloudflare holds for the zone."""
        with explained("client certificates for origin pulls"):
            return [
                Uploaded(one.id or "", pki.read(one.certificate or ""), one.status or "")
                for one in self.api.zone_certificates.list(zone_id=self.zone_id)
            ]

    def enabled(self) -> bool:
        """Tell whether Cloudflare shows origins a certificate."""
        with explained("origin pulls"):
            return bool(self.api.settings.get(zone_id=self.zone_id).enabled)

    def switch(self, on: bool) -> None:
        """Switch origin pulls on or off."""
        with explained("origin pulls"):
            self.api.settings.update(zone_id=self.zone_id, enabled=on)

    def delete(self, ids: list[str]) -> None:
        """Take certificates away; one that is gone already is as good."""
        for one in ids:
            try:
                with explained(f"removing client certificate {one}"):
                    self.api.zone_certificates.delete(one, zone_id=self.zone_id)
            except CloudflareApiError as problem:
                if problem.kind != "missing":
                    raise

    def note(self, line: str) -> bool:
        """Note a step; True when it is to be taken."""
        self.done.append(line)
        return not self.check_mode

    def authority(self) -> str:
        """Return the authority with its key, made at the first run."""
        bundle = secret_files.read(self.authority_file)
        if bundle:
            try:
                pki.split(bundle)
            except (ValueError, TypeError) as problem:
                raise CloudflareApiError(
                    "invalid",
                    f"{self.authority_file}: no key and certificate in it ({problem}). Bring it "
                    "back from a copy: origins trust this authority",
                ) from None
            return bundle
        if not self.note("make an authority for origin pulls"):
            return ""
        made = pki.make_authority(
            f"Millrace origin pulls {self.params['zone']}", AUTHORITY_DAYS, self.now
        )
        secret_files.write(self.authority_file, made)
        return made

    def client(self, authority: str) -> str:
        """Return the client certificate with its key, made anew before it ends."""
        bundle = secret_files.read(self.client_file)
        why = "there is none"
        if authority:
            vouched = pki.split(authority)[1]
            why = client_fault(bundle, vouched, self.params["renew_days"], self.now)
        if not why:
            return bundle
        if not self.note(f"make a client certificate: {why}"):
            return ""
        made = pki.make_client(
            authority, f"{self.params['zone']} at Cloudflare", self.params["validity_days"],
            self.now,
        )  # fmt: skip
        secret_files.write(self.client_file, made)
        return made

    def present(self) -> str:
        """Have the certificate shown, and return the authority."""
        uploaded = self.uploaded()
        kept = secret_files.read(self.authority_file)
        # Before anything is made: who else is there?
        others = sort_out(uploaded, pki.read(kept) if kept else None, None).foreign
        if others and not self.params["beside_others"]:
            told = ", ".join(
                f"{one.id} ({one.certificate.issuer.rfc4514_string() if one.certificate else '?'})"
                for one in others
            )
            raise CloudflareApiError(
                "exists",
                f"origin pulls: the zone has client certificates that are not ours: {told}. "
                "Cloudflare shows all origins of a zone the newest, so that adding ours could lock "
                "visitors out of the others. Remove them in the dashboard (SSL/TLS > Origin "
                "Server), or allow it with origin_pulls_beside_others: true",
            )
        authority = self.authority()
        client = self.client(authority)
        wanted = pki.split(client)[1] if client else None
        zone = sort_out(uploaded, pki.read(authority) if authority else None, wanted)
        shown = zone.wanted
        # The same certificate is not taken twice: one that was not deployed goes first.
        failed = [one.id for one in zone.superseded if one.status in FAILED]
        if failed and self.note(f"remove what was not deployed ({', '.join(failed)})"):
            self.delete(failed)
        if not shown and self.note("upload the client certificate") and wanted:
            with explained("uploading the client certificate"):
                made = self.api.zone_certificates.create(
                    zone_id=self.zone_id,
                    certificate=pki.pem(wanted),
                    private_key=pki.key_pem(pki.split(client)[0]),
                )
            shown = Uploaded(made.id or "", wanted, made.status or "")
        if shown and not self.check_mode:
            self.wait_for(shown)
        if not self.enabled() and self.note("switch origin pulls on"):
            self.switch(True)
            self.sleep(self.params["settle_seconds"])
        old = [one.id for one in zone.superseded if one.id not in failed]
        if old and self.note(f"remove the client certificate before it ({', '.join(old)})"):
            self.delete(old)
        return authority

    def wait_for(self, one: Uploaded) -> None:
        """Wait until a certificate is deployed. Raises CloudflareApiError when it is not."""
        waited, status = 0.0, one.status
        while status != ACTIVE:
            if status not in DEPLOYING or waited >= self.params["wait_seconds"]:
                raise CloudflareApiError(
                    "broken",
                    f"client certificate {one.id}: Cloudflare has not deployed it after "
                    f"{waited:.0f} s (it says: {status}). The server goes on as before; run again",
                )
            self.sleep(POLL_SECONDS)
            waited += POLL_SECONDS
            with explained("client certificates for origin pulls"):
                found = self.api.zone_certificates.get(one.id, zone_id=self.zone_id)
            status = found.status or ""

    def absent(self) -> None:
        """Take away what was made here: at Cloudflare first, then the files."""
        authority = secret_files.read(self.authority_file)
        zone = sort_out(self.uploaded(), pki.read(authority) if authority else None, None)
        ours = [one.id for one in zone.superseded]
        # With certificates of somebody else there, the switch is theirs as well.
        if ours and not zone.foreign and self.enabled() and self.note("switch origin pulls off"):
            self.switch(False)
        if ours and self.note(f"remove client certificates ({', '.join(ours)})"):
            self.delete(ours)
        for file in (self.client_file, self.authority_file):
            if file.exists() and self.note(f"remove {file.name}"):
                file.unlink()


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            **OPTIONS,
            "folder": {"type": "path", "required": True},
            "validity_days": {"type": "int", "default": 1095},
            "renew_days": {"type": "int", "default": 365},
            "wait_seconds": {"type": "int", "default": 600},
            "settle_seconds": {"type": "int", "default": 30},
            "beside_others": {"type": "bool", "default": False},
            "state": {
                "type": "str",
                "choices": ["prepared", "present", "absent"],
                "default": "present",
            },
        },
        supports_check_mode=True,
    )
    params = module.params
    if params["renew_days"] >= params["validity_days"]:
        module.fail_json(msg="renew_days has to be less than validity_days")
    told: dict[str, Any] = {}
    try:
        client = connect(params["api_token"], url=params["api_url"])
        pulls = Pulls(client, params, module.check_mode, datetime.now(UTC))
        if params["state"] == "absent":
            pulls.absent()
        else:
            made = pulls.authority() if params["state"] == "prepared" else pulls.present()
            told["authority"] = pki.pem(pki.split(made)[1]) if made else ""
    except CloudflareApiError as problem:
        module.fail_json(msg=problem.line)
    module.exit_json(changed=bool(pulls.done), done=pulls.done, **told)


if __name__ == "__main__":
    main()
