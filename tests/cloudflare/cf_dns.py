"""DNS records."""

from __future__ import annotations

from typing import Any

from cf_routes import RefusedError, Reply, Request, page, route
from cf_state import Zone, new_id, now

ADDRESSES = ("A", "AAAA")
TAKEN = "An A, AAAA, or CNAME record with that host already exists."
COMMENT_BYTES = 100  # on the Free plan; others have more


def check(zone: Zone, record: dict[str, Any]) -> None:
    """Refuse what the real one refuses."""
    for name in ("name", "type", "content"):
        if not record.get(name):
            raise RefusedError(400, 9005, f"DNS Validation Error: {name} is required")
    if len(record.get("comment") or "") > COMMENT_BYTES:
        raise RefusedError(400, 9208, f"Comment must not exceed {COMMENT_BYTES} characters")
    for other in zone.records.values():
        if other["name"] != record["name"] or other["id"] == record.get("id"):
            continue
        if (other["type"], other["content"]) == (record["type"], record["content"]):
            raise RefusedError(400, 81058, "An identical record already exists.")
        types = {other["type"], record["type"]}
        if "CNAME" in types and types <= {*ADDRESSES, "CNAME"}:
            raise RefusedError(400, 81053, TAKEN)


def complete(record: dict[str, Any]) -> dict[str, Any]:
    """Return a record with what the API adds."""
    proxied = bool(record.get("proxied", False))
    return {
        "proxiable": True,
        "tags": [],
        "comment": None,
        **record,
        "proxied": proxied,
        "ttl": 1 if proxied else record.get("ttl", 1),
        "settings": record.get("settings", {}),
        "meta": {},
        "modified_on": now(),
    }


def keep(zone: Zone, record: dict[str, Any]) -> Reply:
    """Put a record into the zone unless it is refused, and tell what it became."""
    check(zone, record)
    zone.records[record["id"]] = made = complete(record)
    return Reply(made)


@route("GET", "/zones/{zone_id}/dns_records", needs="Zone > DNS > Read")
def list_records(request: Request) -> Reply:
    wanted = {
        key: request.query.get(f"{key}.exact") or request.query.get(key)
        for key in ("name", "type", "content", "comment")
    }
    found = [
        r
        for r in request.zone.records.values()
        if all(value is None or r.get(key) == value for key, value in wanted.items())
    ]
    return page(request, found)


@route("POST", "/zones/{zone_id}/dns_records", needs="Zone > DNS > Edit")
def create_record(request: Request) -> Reply:
    return keep(request.zone, {"id": new_id(), "created_on": now(), **request.body})


def known(request: Request) -> dict[str, Any]:
    """Return the record of the path."""
    try:
        return request.zone.records[request.params["record_id"]]
    except KeyError:
        raise RefusedError(404, 81044, "Record does not exist.") from None


@route("GET", "/zones/{zone_id}/dns_records/{record_id}", needs="Zone > DNS > Read")
def get_record(request: Request) -> Reply:
    return Reply(known(request))


@route("PATCH", "/zones/{zone_id}/dns_records/{record_id}", needs="Zone > DNS > Edit")
def edit_record(request: Request) -> Reply:
    return keep(request.zone, {**known(request), **request.body})


@route("PUT", "/zones/{zone_id}/dns_records/{record_id}", needs="Zone > DNS > Edit")
def replace_record(request: Request) -> Reply:
    old = known(request)
    return keep(request.zone, {"id": old["id"], "created_on": old["created_on"], **request.body})


@route("DELETE", "/zones/{zone_id}/dns_records/{record_id}", needs="Zone > DNS > Edit")
def delete_record(request: Request) -> Reply:
    gone = known(request)
    del request.zone.records[gone["id"]]
    return Reply({"id": gone["id"]})
