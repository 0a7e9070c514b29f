"""How modules talk to Cloudflare: the official client, patience, and errors told in one line.

Runs on the controller, whose environment has the library; nothing of it reaches a server.
"""

from __future__ import annotations

import itertools
import random
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from typing import Any

try:
    import cloudflare
    import httpx

    MISSING = ""
except ImportError as problem:
    MISSING = str(problem)

API_URL = "https://api.cloudflare.com/client/v4"
OPTIONS = {
    "api_token": {"type": "str", "required": True, "no_log": True},
    "api_url": {"type": "str", "default": API_URL},
    "zone": {"type": "str", "required": True},
}
"""What every module is told; documented in plugins/doc_fragments/cloudflare_api.py."""
FIRST_WAIT_SECONDS = 0.5
LONGEST_WAIT_SECONDS = 30.0
WORTH_ANOTHER_TRY = {408, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524, 525, 526, 527, 530}

PERMISSIONS: tuple[tuple[str, str], ...] = (
    (r"phases/http_request_cache_settings/", "Zone > Cache Rules > Edit"),
    (r"phases/http_config_settings/", "Zone > Config Rules > Edit"),
    (r"phases/http_response_compression/", "Zone > Response Compression > Edit"),
    (r"phases/(http_request_firewall_custom|http_ratelimit)/", "Zone > Zone WAF > Edit"),
    (r"/zones/[^/]+/dns_records", "Zone > DNS > Edit"),
    (r"/zones/[^/]+/settings/tls_client_auth", "Zone > SSL and Certificates > Edit"),
    (r"/zones/[^/]+/settings", "Zone > Zone Settings > Edit"),
    (r"/zones/[^/]+/origin_tls_client_auth", "Zone > SSL and Certificates > Edit"),
    (r"/certificates", "Zone > SSL and Certificates > Edit"),
    (r"/cfd_tunnel", "Account > Cloudflare Tunnel > Edit"),
    (r"/zones(/[^/]+)?$", "Zone > Zone > Read"),
)
"""What a token needs, by the path that was refused; the names are those of the dashboard."""

BAD_TOKEN = {1000, 6003, 6111}
UNAUTHORISED = {9109, 10000, 7403, 10405, 1016}
PLAN_CODES = {50001}
PLAN_WORDS = re.compile(
    r"not entitled|entitlement|exceeded (the )?maximum number of rules|not allowed to edit"
    r"|read.?only|your plan|plan (level|type)|upgrade|only available (to|on|for)",
    re.IGNORECASE,
)


class CloudflareApiError(Exception):
    """What Cloudflare refused, in one line for people.

    `kind` is one of: token (the token itself is no good), permission (the token may not),
    plan (the zone's plan has it not), exists, missing, invalid (Cloudflare does not understand the
    request), broken (no answer, or errors beyond our patience).
    """

    def __init__(
        self, kind: str, line: str, codes: tuple[int, ...] = (), permission: str = ""
    ) -> None:
        super().__init__(line)
        self.kind = kind
        self.line = line
        self.codes = codes
        self.permission = permission


def wait_asked_for(header: str | None, now: float) -> float | None:
    """Return the seconds that a Retry-After header asks for; None where it says nothing."""
    if not header:
        return None
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(header).timestamp() - now)
    except (TypeError, ValueError):
        return None


def wait_before(attempt: int, asked: float | None) -> float:
    """Return how long to wait before the next attempt (0 is the first), in seconds.

    What the answer asks for is kept to. Otherwise the wait doubles, with some chance in it, so
    that several runs do not come back in the same moment.
    """
    if asked is not None:
        return asked
    longest: float = min(FIRST_WAIT_SECONDS * 2**attempt, LONGEST_WAIT_SECONDS)
    return longest * random.uniform(0.75, 1.0)  # noqa: S311 - not a secret


if not MISSING:

    class PatientClient(cloudflare.DefaultHttpxClient):  # type: ignore[misc]
        """An HTTP client that tries again what is worth it, within a bound.

        The library's own retries ignore a Retry-After of more than a minute, which is what
        Cloudflare sends when its 1,200 requests in five minutes are spent.
        """

        def __init__(self, patience_seconds: float, **options: Any) -> None:
            super().__init__(**options)
            self.patience_seconds = patience_seconds

        def send(self, request: httpx.Request, **options: Any) -> Any:
            """Send a request; what comes when patience is at its end is handed on."""
            until = time.monotonic() + self.patience_seconds
            for attempt in itertools.count():
                try:
                    response = super().send(request, **options)
                except httpx.TransportError:
                    wait = wait_before(attempt, None)
                    if time.monotonic() + wait > until:
                        raise
                else:
                    if response.status_code not in WORTH_ANOTHER_TRY:
                        return response
                    asked = wait_asked_for(response.headers.get("retry-after"), time.time())
                    wait = wait_before(attempt, asked)
                    if time.monotonic() + wait > until:
                        return response
                    response.close()
                time.sleep(wait)
            return None


def connect(
    token: str,
    *,
    url: str = API_URL,
    timeout_seconds: float = 30,
    patience_seconds: float = 180,
) -> Any:
    """Return the official client for a token.

    `patience_seconds` bounds what one call may take with all its attempts. Raises
    CloudflareApiError when the library or the token is missing.
    """
    if MISSING:
        raise CloudflareApiError(
            "broken",
            f"the Python library 'cloudflare' is not in this environment ({MISSING}): run the "
            "playbook through ./millrace, or install requirements/controller.txt",
        )
    if not token.strip():
        raise CloudflareApiError(
            "token",
            "there is no Cloudflare API token: put it into the vault as "
            "vault_cloudflare_api_token (docs/cloudflare.md says how to make one)",
        )
    client = cloudflare.Cloudflare(
        api_token=token.strip(),
        base_url=url,
        max_retries=0,
        http_client=PatientClient(patience_seconds, base_url=url, timeout=timeout_seconds),
    )
    # The library takes these from the environment, where they win over the token.
    client.api_key = client.api_email = client.user_service_key = None
    return client


def permission_for(path: str) -> str:
    """Return the token permission that a path of the API needs."""
    for pattern, permission in PERMISSIONS:
        if re.search(pattern, path):
            return permission
    return "a permission for " + path


def lacks(permissions: list[str]) -> str:
    """Return the sentence for permissions that a token lacks."""
    named = ", ".join(f"'{name}'" for name in permissions)
    return (
        f"the API token lacks {named}, or does not cover this zone. Add it in Cloudflare's "
        "dashboard, My Profile > API Tokens, and run again."
    )


def kind_of(status: int, codes: tuple[int, ...], text: str) -> str:
    """Tell what sort of refusal an answer is; CloudflareApiError lists them."""
    if status == 429 or status >= 500:
        return "broken"
    if status == 401 or set(codes) & BAD_TOKEN or "invalid access token" in text.lower():
        return "token"
    if set(codes) & PLAN_CODES or PLAN_WORDS.search(text):
        return "plan"
    if status == 403 or set(codes) & UNAUTHORISED:
        return "permission"
    if status == 404:
        return "missing"
    if status == 409 or "already exist" in text.lower():
        return "exists"
    return "invalid"


def explain(problem: Any, what: str, path: str = "") -> CloudflareApiError:
    """Turn an error of the library into a line: what was refused, why, and how to mend it.

    `path` says what was asked for where the request's own address does not tell (rules are
    written under their ruleset's id; the phase decides which permission they need).
    """
    asked = path or problem.request.url.path
    status = getattr(problem, "status_code", 0)
    if not status:
        return CloudflareApiError(
            "broken",
            f"{what}: Cloudflare's API could not be reached ({problem.request.url.host}). Check "
            "this machine's network and cloudflare_api_url, then run again",
        )
    errors = [e for e in getattr(problem, "errors", []) or [] if e is not None]
    codes = tuple(e.code for e in errors if e.code is not None)
    said = "; ".join(e.message for e in errors if e.message) or f"HTTP {status}"
    kind = kind_of(status, codes, said)
    told = f"{said} ({', '.join(map(str, codes)) or f'HTTP {status}'})"
    line = {
        "token": f"{what}: the API token is not valid: {told}. It may be mistyped, expired or "
        "revoked: make a new one (docs/cloudflare.md) and put it into vault_cloudflare_api_token",
        "permission": f"{what}: {lacks([permission_for(asked)])} {told}",
        "plan": f"{what}: this zone's plan refuses it: {told}",
        "missing": f"{what}: not found: {told}",
        "exists": f"{what}: it is there already: {told}",
        "invalid": f"{what}: Cloudflare refused the request: {told}",
        "broken": f"{what}: Cloudflare answers with errors, and goes on doing so: {told}. Nothing "
        "is lost: run again later, what is missing will be done then",
    }[kind]
    return CloudflareApiError(
        kind, line, codes, permission_for(asked) if kind == "permission" else ""
    )


@contextmanager
def explained(what: str, path: str = "") -> Iterator[None]:
    """Let errors of the library inside come out as CloudflareApiError; `what` begins the line."""
    try:
        yield
    except cloudflare.APIError as problem:
        raise explain(problem, what, path) from None


def find_zone(client: Any, name: str) -> Any:
    """Return the zone of that name (id, name, plan, account, status, name_servers).

    Raises CloudflareApiError when the token cannot see it.
    """
    with explained(f"zone {name}"):
        for zone in client.zones.list(name=name):
            if zone.name == name:
                return zone
    raise CloudflareApiError(
        "permission",
        f"zone {name}: this token sees no such zone. Check cloudflare_zone (the zone's own name, "
        "such as example.com), that the zone is in the token's account, and that the token has "
        "'Zone > Zone > Read' for it",
    )
