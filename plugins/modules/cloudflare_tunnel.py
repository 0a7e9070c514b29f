#!/usr/bin/python
"""A named Cloudflare tunnel to one server, and the names that lead to it."""

from __future__ import annotations

import base64
import binascii
import hmac
import json
import secrets
from pathlib import Path
from typing import Any

from ansible.module_utils import secret_files
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.cloudflare_api import (
    OPTIONS,
    CloudflareApiError,
    connect,
    explained,
    find_zone,
)

DOCUMENTATION = r"""
---
module: cloudflare_tunnel
short_description: A named Cloudflare tunnel to one server, and the names that lead to it
description:
  - Runs on the controller. Makes a tunnel whose configuration lies on the server, keeps its
    credentials in a file here (mode 0600, in cloudflared's own form), and points names to it.
  - The secret is made and kept before the tunnel is asked for. A tunnel of the wanted name is ours
    when Cloudflare's token for it holds our secret; one of somebody else's is left alone.
  - Names that lead elsewhere are left alone as well, unless a record carries C(mark).
options:
  name:
    description: The tunnel's name.
    type: str
    required: true
  hostnames:
    description: Names in the zone that lead to it.
    type: list
    elements: str
    default: []
  file:
    description: Where the credentials are kept on this machine.
    type: path
    required: true
  mark:
    description: How comments of our DNS records begin.
    type: str
    default: millrace
  state:
    description: What should be.
    type: str
    choices: [present, absent]
    default: present
extends_documentation_fragment: [cloudflare_api]
author: Millrace
"""

RETURN = r"""
tunnel_id:
  description: The tunnel's id. Empty in check mode before the first run.
  type: str
  returned: with state=present
done:
  description: What was done, or would be in check mode, a line each.
  type: list
  returned: always
"""

SECRET_BYTES = 32
TARGET = ".cfargotunnel.com"
ADDRESSED = ("A", "AAAA", "CNAME")


class Tunnel:
    """One run: what is kept here, what is at Cloudflare, and what was done about it."""

    def __init__(self, client: Any, params: dict[str, Any], check_mode: bool) -> None:
        self.tunnels = client.zero_trust.tunnels.cloudflared
        self.records = client.dns.records
        self.params = params
        self.check_mode = check_mode
        self.file = Path(params["file"])
        zone = find_zone(client, params["zone"])
        self.zone_id, self.account_id = zone.id, zone.account.id
        self.done: list[str] = []

    def note(self, line: str) -> bool:
        """Note a step; True when it is to be taken."""
        self.done.append(line)
        return not self.check_mode

    def credentials(self) -> dict[str, str]:
        """Return what is kept here; empty before the first run."""
        text = secret_files.read(self.file)
        try:
            kept = json.loads(text) if text else {}
            return {str(key): str(value) for key, value in kept.items()}
        except (ValueError, AttributeError):
            raise CloudflareApiError(
                "invalid",
                f"{self.file}: no credentials of a tunnel in it. Bring it back from a copy, or "
                "remove it together with the tunnel",
            ) from None

    def keep(self, secret: str, tunnel_id: str) -> None:
        """Keep the credentials."""
        told = {"AccountTag": self.account_id, "TunnelSecret": secret, "TunnelID": tunnel_id}
        secret_files.write(self.file, json.dumps(told) + "\n")

    def alive(self, tunnel_id: str) -> bool:
        """Tell whether a tunnel is there."""
        try:
            with explained(f"tunnel {self.params['name']}"):
                found = self.tunnels.get(tunnel_id, account_id=self.account_id)
        except CloudflareApiError as problem:
            if problem.kind == "missing":
                return False
            raise
        return found.deleted_at is None

    def named(self, secret: str) -> str:
        """Return the id of our tunnel of the wanted name; empty when there is none of that name.

        Raises CloudflareApiError when there is one that is not ours.
        """
        name = self.params["name"]
        with explained(f"tunnel {name}"):
            found = [
                one
                for one in self.tunnels.list(
                    account_id=self.account_id, name=name, is_deleted=False
                )
                if one.name == name and one.deleted_at is None
            ]
            if not found:
                return ""
            token = self.tunnels.token.get(found[0].id, account_id=self.account_id)
        if secret and hmac.compare_digest(secret_of(str(token)), secret):
            return str(found[0].id)
        raise CloudflareApiError(
            "exists",
            f"tunnel {name}: the account has one of this name that was not made here "
            f"({found[0].id}). Remove it in the dashboard (Zero Trust > Networks > Tunnels), or "
            "choose another cloudflared_tunnel_name",
        )

    def make(self, secret: str) -> str:
        """Make the tunnel. One whose answer was lost is found again."""
        try:
            with explained(f"tunnel {self.params['name']}"):
                made = self.tunnels.create(
                    account_id=self.account_id,
                    name=self.params["name"],
                    # What is served stands in one place, the server's own configuration.
                    config_src="local",
                    tunnel_secret=secret,
                )
        except CloudflareApiError as problem:
            if problem.kind != "exists":
                raise
            return self.named(secret)
        return str(made.id)

    def tunnel(self) -> str:
        """Return the tunnel's id, made when it is not there."""
        kept = self.credentials()
        secret, tunnel_id = kept.get("TunnelSecret", ""), kept.get("TunnelID", "")
        if tunnel_id and self.alive(tunnel_id):
            return tunnel_id
        found = self.named(secret)
        if found:
            if self.note(f"keep tunnel {found}, which an earlier run made"):
                self.keep(secret, found)
            return found
        if not self.note(f"make tunnel {self.params['name']}"):
            return ""
        secret = base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode()
        # Kept first: a run that dies now leaves a tunnel that the next one knows as its own.
        self.keep(secret, "")
        made = self.make(secret)
        self.keep(secret, made)
        return made

    def lead(self, hostname: str, tunnel_id: str) -> None:
        """Have a name lead to the tunnel. Raises CloudflareApiError when it is somebody else's."""
        target = f"{tunnel_id}{TARGET}" if tunnel_id else ""
        with explained(f"DNS record of {hostname}"):
            there = [
                one
                for one in self.records.list(zone_id=self.zone_id, name={"exact": hostname})
                if one.type in ADDRESSED and one.name == hostname
            ]
        right = [one for one in there if one.type == "CNAME" and one.content == target]
        if right and right[0].proxied:
            return
        others = [one for one in there if one not in right and not self.marked(one)]
        if others:
            told = ", ".join(f"{one.type} {one.content}" for one in others)
            raise CloudflareApiError(
                "exists",
                f"DNS record of {hostname}: it leads elsewhere ({told}), and was not made here. "
                "Remove it in the dashboard (DNS > Records), then run again",
            )
        if not self.note(f"have {hostname} lead to the tunnel"):
            return
        wanted = {
            "type": "CNAME",
            "name": hostname,
            "content": target,
            "proxied": True,
            "ttl": 1,
            "comment": f"{self.params['mark']}: tunnel {self.params['name']}",
        }
        with explained(f"DNS record of {hostname}"):
            # A name with a CNAME has no other address: all but one go, and that one is rewritten,
            # so that the name is never without a record.
            for spare in there[1:]:
                self.records.delete(spare.id, zone_id=self.zone_id)
            if there:
                self.records.update(there[0].id, zone_id=self.zone_id, **wanted)
            else:
                self.records.create(zone_id=self.zone_id, **wanted)

    def marked(self, record: Any) -> bool:
        """Tell whether a record was made here."""
        return str(record.comment or "").startswith(f"{self.params['mark']}:")

    def present(self) -> str:
        """Have the tunnel and its names; return its id."""
        tunnel_id = self.tunnel()
        for hostname in self.params["hostnames"]:
            self.lead(hostname, tunnel_id)
        for record in self.leading(tunnel_id) if tunnel_id else []:
            if record.name not in self.params["hostnames"] and self.marked(record):
                self.forget(record)
        return tunnel_id

    def leading(self, tunnel_id: str) -> list[Any]:
        """Return the DNS records that lead to a tunnel."""
        target = f"{tunnel_id}{TARGET}"
        with explained("DNS records of the tunnel"):
            found = self.records.list(zone_id=self.zone_id, content={"exact": target})
            return [one for one in found if one.content == target]

    def forget(self, record: Any) -> None:
        """Remove a DNS record."""
        if self.note(f"remove the DNS record of {record.name}"):
            with explained(f"DNS record of {record.name}"):
                self.records.delete(record.id, zone_id=self.zone_id)

    def absent(self) -> None:
        """Take away the names first, then the tunnel, then what is kept here."""
        if not self.file.exists():
            return
        kept = self.credentials()
        tunnel_id = kept.get("TunnelID") or self.named(kept.get("TunnelSecret", ""))
        if tunnel_id:
            for record in self.leading(tunnel_id):
                self.forget(record)
        if tunnel_id and self.alive(tunnel_id) and self.note(f"remove tunnel {tunnel_id}"):
            with explained(f"tunnel {self.params['name']}"):
                # Connections are remembered for minutes; a tunnel with such is not removed.
                self.tunnels.connections.delete(tunnel_id, account_id=self.account_id)
                self.tunnels.delete(tunnel_id, account_id=self.account_id)
        if self.note(f"remove {self.file.name}"):
            self.file.unlink()


def secret_of(token: str) -> str:
    """Return the secret in a tunnel's token; empty when it has another form."""
    try:
        return str(json.loads(base64.b64decode(token, validate=True))["s"])
    except (ValueError, KeyError, TypeError, binascii.Error):
        return ""


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            **OPTIONS,
            "name": {"type": "str", "required": True},
            "hostnames": {"type": "list", "elements": "str", "default": []},
            "file": {"type": "path", "required": True},
            "mark": {"type": "str", "default": "millrace"},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
        },
        supports_check_mode=True,
    )
    params = module.params
    told: dict[str, Any] = {}
    try:
        tunnel = Tunnel(connect(params["api_token"], url=params["api_url"]), params,
                        module.check_mode)  # fmt: skip
        if params["state"] == "present":
            told["tunnel_id"] = tunnel.present()
        else:
            tunnel.absent()
    except CloudflareApiError as problem:
        module.fail_json(msg=problem.line)
    module.exit_json(changed=bool(tunnel.done), done=tunnel.done, **told)


if __name__ == "__main__":
    main()
