"""Named tunnels of an account, their tokens and connections.

`zone.extra["connections"]` holds the ids of tunnels with a connector; such are not removed.
"""

from __future__ import annotations

import base64
import json
import secrets
import uuid
from typing import Any

from cf_routes import RefusedError, Reply, Request, page, route
from cf_state import Zone, now

EDIT = "Account > Cloudflare Tunnel > Edit"
READ = "Account > Cloudflare Tunnel > Read"
BASE = "/accounts/{account_id}/cfd_tunnel"


def account(request: Request) -> Zone:
    """Return the zone that stands for the account: each has one of its own."""
    for zone in request.world.zones.values():
        if zone.account == request.params["account_id"]:
            return zone
    raise RefusedError(
        404,
        7003,
        f"Could not route to {request.path}, perhaps your object identifier is invalid?",
    )


def kept(request: Request) -> dict[str, dict[str, Any]]:
    """Return the account's tunnels, by id, removed ones as well."""
    found: dict[str, dict[str, Any]] = account(request).extra.setdefault("tunnels", {})
    return found


def known(request: Request) -> dict[str, Any]:
    """Return the tunnel of the path."""
    try:
        return kept(request)[request.params["tunnel_id"]]
    except KeyError:
        raise RefusedError(404, 1003, "Tunnel not found") from None


def shown(tunnel: dict[str, Any]) -> dict[str, Any]:
    """Return a tunnel without its secret."""
    return {key: value for key, value in tunnel.items() if key != "secret"}


@route("GET", BASE, needs=READ)
def list_tunnels(request: Request) -> Reply:
    found = list(kept(request).values())
    if name := request.query.get("name"):
        found = [one for one in found if one["name"] == name]
    if deleted := request.query.get("is_deleted"):
        found = [one for one in found if (one["deleted_at"] is not None) == (deleted == "true")]
    return page(request, [shown(one) for one in found])


@route("POST", BASE, needs=EDIT)
def create_tunnel(request: Request) -> Reply:
    body = request.body
    if not body.get("name"):
        raise RefusedError(400, 1002, "tunnel name is required")
    if any(o["name"] == body["name"] and not o["deleted_at"] for o in kept(request).values()):
        raise RefusedError(409, 1013, "You already have a tunnel with this name")
    secret = body.get("tunnel_secret") or base64.b64encode(secrets.token_bytes(32)).decode()
    if len(base64.b64decode(secret)) < 32:
        raise RefusedError(400, 1004, "tunnel secret must be at least 32 bytes")
    made = {
        "id": str(uuid.uuid4()),
        "account_tag": request.params["account_id"],
        "name": body["name"],
        "config_src": body.get("config_src", "local"),
        "created_at": now(),
        "deleted_at": None,
        "status": "inactive",
        "connections": [],
        "tun_type": "cfd_tunnel",
        "secret": secret,
    }
    kept(request)[made["id"]] = made
    return Reply(shown(made))


@route("GET", f"{BASE}/{{tunnel_id}}", needs=READ)
def get_tunnel(request: Request) -> Reply:
    return Reply(shown(known(request)))


@route("GET", f"{BASE}/{{tunnel_id}}/token", needs=EDIT)
def get_token(request: Request) -> Reply:
    one = known(request)
    told = {"a": one["account_tag"], "t": one["id"], "s": one["secret"]}
    return Reply(base64.b64encode(json.dumps(told).encode()).decode())


@route("DELETE", f"{BASE}/{{tunnel_id}}/connections", needs=EDIT)
def clean_connections(request: Request) -> Reply:
    account(request).extra.setdefault("connections", set()).discard(known(request)["id"])
    return Reply(None)


@route("DELETE", f"{BASE}/{{tunnel_id}}", needs=EDIT)
def delete_tunnel(request: Request) -> Reply:
    one = known(request)
    if one["id"] in account(request).extra.get("connections", set()):
        raise RefusedError(400, 1022, "Cannot delete tunnel because it has active connections")
    one["deleted_at"] = now()
    return Reply(shown(one))
