"""Zones and their settings."""

from __future__ import annotations

from typing import Any

from cf_plans import PLAN_NAMES, SETTINGS, editable
from cf_routes import RefusedError, Reply, Request, page, route
from cf_state import Zone, now


def shown(zone: Zone) -> dict[str, Any]:
    """Return a zone as the API shows it."""
    return {
        "id": zone.id,
        "name": zone.name,
        "status": "active",
        "paused": False,
        "type": "full",
        "development_mode": 0,
        "name_servers": ["ada.ns.cloudflare.com", "bob.ns.cloudflare.com"],
        "account": {"id": zone.account, "name": "Test"},
        "plan": {"id": "0" * 32, "name": PLAN_NAMES[zone.plan], "legacy_id": zone.plan},
        "created_on": "2026-01-01T00:00:00Z",
        "modified_on": "2026-01-01T00:00:00Z",
        "meta": {},
        "owner": {},
    }


@route("GET", "/zones", needs="Zone > Zone > Read", code=9109)
def list_zones(request: Request) -> Reply:
    name = request.query.get("name", "")
    found = [z for z in request.world.zones.values() if name in ("", z.name)]
    return page(request, [shown(z) for z in found], most=50)


@route("GET", "/zones/{zone_id}", needs="Zone > Zone > Read", code=9109)
def get_zone(request: Request) -> Reply:
    return Reply(shown(request.zone))


def setting(zone: Zone, name: str) -> dict[str, Any]:
    """Return a setting as the API shows it."""
    if name not in SETTINGS:
        raise RefusedError(400, 1003, f"Invalid zone setting: {name}")
    return {
        "id": name,
        "value": zone.settings.get(name, SETTINGS[name]),
        "editable": editable(name, zone.plan),
        "modified_on": now(),
    }


@route("GET", "/zones/{zone_id}/settings/{name}", needs="Zone > Zone Settings > Read", code=9109)
def get_setting(request: Request) -> Reply:
    return Reply(setting(request.zone, request.params["name"]))


@route("PATCH", "/zones/{zone_id}/settings/{name}", needs="Zone > Zone Settings > Edit", code=9109)
def edit_setting(request: Request) -> Reply:
    name = request.params["name"]
    if not setting(request.zone, name)["editable"] or name in request.zone.withheld:
        raise RefusedError(400, 1006, f"Not allowed to edit setting for {name}")
    if not isinstance(request.body, dict) or "value" not in request.body:
        raise RefusedError(400, 1007, f"Invalid value for zone setting {name}")
    request.zone.settings[name] = request.body["value"]
    return Reply(setting(request.zone, name))
