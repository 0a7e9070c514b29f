"""What the stand-in's files share: routes, requests, errors in the API's own shapes.

A file adds its part of the API by decorating functions with `route` and being named in
`cf_server.PARTS`:

    @route("GET", "/zones/{zone_id}/dns_records", needs="Zone > DNS > Read")
    def list_records(request: Request) -> Reply:
        return page(request, list(request.zone.records.values()))
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cf_state import World, Zone


class RefusedError(Exception):
    """An answer with success false."""

    def __init__(self, status: int, code: int, message: str, pointer: str = "") -> None:
        super().__init__(message)
        self.status = status
        error: dict[str, Any] = {"code": code, "message": message}
        if pointer:
            error["source"] = {"pointer": pointer}
        self.errors = [error]


@dataclass
class Reply:
    """An answer: `result` goes into the envelope."""

    result: Any
    result_info: dict[str, Any] | None = None
    status: int = 200


@dataclass
class Request:
    """One call, as a route sees it."""

    world: World
    method: str
    path: str
    query: dict[str, str]
    body: Any
    permissions: set[str]
    params: dict[str, str] = field(default_factory=dict)

    @property
    def zone(self) -> Zone:
        """The zone of `{zone_id}`."""
        return self.world.zones[self.params["zone_id"]]

    def need(self, permission: str, *, code: int = 10000) -> None:
        """Refuse as Cloudflare does unless the token has the permission (Edit holds Read)."""
        edit = re.sub(r"> Read$", "> Edit", permission)
        if permission not in self.permissions and edit not in self.permissions:
            message = {9109: "Unauthorized to access requested resource"}
            raise RefusedError(403, code, message.get(code, "Authentication error"))


Answer = Callable[[Request], Reply]


@dataclass(frozen=True)
class Route:
    """A path of the API and who answers it."""

    method: str
    pattern: re.Pattern[str]
    needs: str
    code: int
    answer: Answer


ROUTES: list[Route] = []


def route(method: str, path: str, *, needs: str = "", code: int = 10000) -> Callable[..., Answer]:
    """Register a route. `needs` is the token's permission, `code` the error without it."""
    pattern = re.compile("^" + re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", path) + "$")

    def register(answer: Answer) -> Answer:
        ROUTES.append(Route(method, pattern, needs, code, answer))
        return answer

    return register


def page(request: Request, found: list[Any], *, most: int = 100) -> Reply:
    """Answer with one page of a list; a page beyond the last is empty."""
    number = max(1, int(request.query.get("page", 1)))
    size = min(most, max(1, int(request.query.get("per_page", 20))))
    shown = found[(number - 1) * size : number * size]
    return Reply(
        shown,
        {
            "page": number,
            "per_page": size,
            "count": len(shown),
            "total_count": len(found),
            "total_pages": -(-len(found) // size),
        },
    )
