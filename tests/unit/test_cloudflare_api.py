"""How modules talk to Cloudflare, against the stand-in in tests/cloudflare."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import cf_state
import httpx
import pytest
from cf_server import Standin
from cloudflare_api import (
    CloudflareApiError,
    connect,
    explained,
    find_zone,
    kind_of,
    wait_asked_for,
    wait_before,
)

TOKEN = "t" * 40


@pytest.fixture
def api() -> Iterator[Standin]:
    with Standin() as standin:
        standin.world.token(TOKEN)
        yield standin


def test_a_zone_is_found_among_many_by_its_name(api: Standin) -> None:
    for number in range(60):
        api.world.zone(f"zone-{number}.example")
    wanted = api.world.zone("example.com", "business")
    found = find_zone(connect(TOKEN, url=api.url), "example.com")
    assert (found.id, found.plan.legacy_id) == (wanted.id, "business")


def test_a_zone_that_the_token_cannot_see_is_one_clear_line(api: Standin) -> None:
    with pytest.raises(CloudflareApiError, match="'Zone > Zone > Read'") as told:
        find_zone(connect(TOKEN, url=api.url), "example.com")
    assert told.value.kind == "permission"
    assert "\n" not in told.value.line


@pytest.mark.parametrize("token", ["t0ken", "two words"])
def test_a_token_that_is_none_is_told_from_one_that_may_not(api: Standin, token: str) -> None:
    api.world.zone("example.com")
    with pytest.raises(CloudflareApiError, match="token is not valid") as told:
        find_zone(connect(token, url=api.url), "example.com")
    assert told.value.kind == "token"
    assert token not in told.value.line


def test_no_token_says_where_it_belongs(api: Standin) -> None:
    with pytest.raises(CloudflareApiError, match="vault_cloudflare_api_token"):
        connect(" ", url=api.url)


@pytest.mark.parametrize(
    ("missing", "path"),
    [
        ("Zone > DNS > Edit", "dns_records"),
        ("Zone > Zone Settings > Edit", "settings/ssl"),
        ("Zone > Cache Rules > Edit", "rulesets/phases/http_request_cache_settings/entrypoint"),
        ("Zone > Config Rules > Edit", "rulesets/phases/http_config_settings/entrypoint"),
        (
            "Zone > Response Compression > Edit",
            "rulesets/phases/http_response_compression/entrypoint",
        ),
        ("Zone > Zone WAF > Edit", "rulesets/phases/http_ratelimit/entrypoint"),
    ],
)
def test_a_missing_permission_is_named(api: Standin, missing: str, path: str) -> None:
    zone = api.world.zone("example.com")
    api.world.token("weak", cf_state.EVERYTHING - {missing})
    client = connect("weak", url=api.url)
    with pytest.raises(CloudflareApiError) as told, explained("reading"):
        client.get(f"/zones/{zone.id}/{path}", cast_to=object)
    assert told.value.kind == "permission"
    assert f"'{missing}'" in told.value.line


@pytest.mark.parametrize("status", [429, 503, 524])
def test_what_passes_is_waited_out(api: Standin, status: int) -> None:
    api.world.zone("example.com")
    api.world.faults.append(cf_state.Fault(status))
    find_zone(connect(TOKEN, url=api.url, patience_seconds=20), "example.com")
    assert [c.status for c in api.world.calls][:2] == [status, 200]


def test_a_line_that_breaks_is_tried_again(api: Standin, monkeypatch: pytest.MonkeyPatch) -> None:
    api.world.zone("example.com")
    breaks = [httpx.ReadError("gone"), httpx.ConnectTimeout("nobody")]
    send = httpx.Client.send

    def broken_first(self: httpx.Client, request: httpx.Request, **options: Any) -> httpx.Response:
        if breaks:
            raise breaks.pop()
        return send(self, request, **options)

    monkeypatch.setattr(httpx.Client, "send", broken_first)
    found = find_zone(connect(TOKEN, url=api.url, patience_seconds=20), "example.com")
    assert (found.name, breaks) == ("example.com", [])


def test_retry_after_is_kept_to(api: Standin, monkeypatch: pytest.MonkeyPatch) -> None:
    api.world.zone("example.com")
    api.world.faults.append(cf_state.Fault(429, retry_after="97"))
    waits: list[float] = []
    monkeypatch.setattr("cloudflare_api.time.sleep", waits.append)
    find_zone(connect(TOKEN, url=api.url, patience_seconds=600), "example.com")
    assert waits == [97]


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long was waited, without waiting; half a minute in all is too long."""
    waits: list[float] = []

    def note(seconds: float) -> None:
        waits.append(seconds)
        if sum(waits) > 30:
            pytest.fail(f"waited {sum(waits):.0f} s")

    monkeypatch.setattr("cloudflare_api.time.sleep", note)
    return waits


def test_patience_ends(api: Standin, slept: list[float]) -> None:
    api.world.zone("example.com")
    api.world.faults.append(cf_state.Fault(503, times=1000))
    with pytest.raises(CloudflareApiError, match="run again later") as told:
        find_zone(connect(TOKEN, url=api.url, patience_seconds=2), "example.com")
    assert told.value.kind == "broken"
    assert slept


def test_longer_than_patience_is_not_waited_for(api: Standin, slept: list[float]) -> None:
    api.world.zone("example.com")
    api.world.faults.append(cf_state.Fault(429, retry_after="3000"))
    with pytest.raises(CloudflareApiError) as told:
        find_zone(connect(TOKEN, url=api.url, patience_seconds=5), "example.com")
    assert told.value.kind == "broken"
    assert (len(api.world.calls), slept) == (1, [])


def test_nobody_there_is_one_clear_line() -> None:
    client = connect(TOKEN, url="http://127.0.0.1:9/client/v4", patience_seconds=0.2)
    with pytest.raises(CloudflareApiError, match="could not be reached"):
        find_zone(client, "example.com")


def test_the_environments_other_keys_are_not_sent(
    api: Standin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library would prefer them to the token."""
    monkeypatch.setenv("CLOUDFLARE_EMAIL", "somebody@example.com")
    monkeypatch.setenv("CLOUDFLARE_API_KEY", "k" * 37)
    api.world.zone("example.com")
    assert find_zone(connect(TOKEN, url=api.url), "example.com").name == "example.com"


def test_waits_double_and_keep_to_what_is_asked() -> None:
    assert [0.375 <= wait_before(0, None) <= 0.5, 1.5 <= wait_before(2, None) <= 2] == [True, True]
    assert wait_before(50, None) <= 30
    assert wait_before(0, 90.0) == 90
    assert wait_asked_for("7", 0) == 7
    assert wait_asked_for("Thu, 01 Jan 1970 00:01:40 GMT", 40) == 60
    assert wait_asked_for("soon", 0) is None
    assert wait_asked_for(None, 0) is None


@pytest.mark.parametrize(
    ("status", "code", "text", "kind"),
    [
        (400, 50001, "exceeded the maximum number of rules in the phase x: 6 out of 5", "plan"),
        (400, 50001, "in other words", "plan"),
        (400, 20155, "not entitled to use the period 60, can only use a period among [10]", "plan"),
        (403, 0, "not entitled to use the HostHeader override", "plan"),
        (403, 10000, "Authentication error", "permission"),
        (403, 4711, "in other words", "permission"),
        (400, 10000, "Authentication error", "permission"),
        (403, 9109, "Unauthorized to access requested resource", "permission"),
        (403, 9109, "Invalid access token", "token"),
        (401, 1000, "Invalid API Token", "token"),
        (400, 6003, "Invalid request headers", "token"),
        (404, 10003, "could not find entrypoint ruleset in the x phase", "missing"),
        (400, 81058, "An identical record already exists.", "exists"),
        (400, 20120, "rule expression is required", "invalid"),
        (502, 0, "HTTP 502", "broken"),
    ],
)
def test_refusals_are_told_apart(status: int, code: int, text: str, kind: str) -> None:
    assert kind_of(status, (code,), text) == kind
