"""The page on a real server, through its nginx, LiteLLM and vLLM, as people meet it."""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable, Iterator

import pytest
from browser_kit import ask, finished
from front import ROOT
from playwright.sync_api import Browser, Page, expect

sys.path.insert(0, str(ROOT / "tests/host"))
from servers import RECITAL, Server, servers


def reason_against(server: Server) -> str:
    """Return why this server cannot be asked, or nothing."""
    try:
        socket.create_connection((server.address, 443), timeout=3).close()
    except OSError as error:
        return f"{server.name} is not up ({error}): the host stage makes it"
    return server.run("cat /etc/millrace/no-engine 2>/dev/null", check=False).strip()


@pytest.fixture(params=sorted(servers()))
def there(request: pytest.FixtureRequest, chromium: Browser) -> Iterator[tuple[Server, Page]]:
    """Return a server and its page, logged in with the owner's key."""
    server = servers()[request.param]
    if reason := reason_against(server):
        pytest.skip(reason)
    context = chromium.new_context(ignore_https_errors=True)
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    complaints: list[str] = []
    page = context.new_page()
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda said: complaints.append(said.text) if "Policy" in said.text else None)
    page.goto(f"https://{server.address}/")
    page.get_by_label("Key").fill(server.key)
    page.keyboard.press("Enter")
    expect(page.get_by_label("Your message")).to_be_visible()
    yield server, page
    context.close()
    assert complaints == []


def copied(page: Page) -> str:
    """Return the last answer as it is copied: the model's own text."""
    page.get_by_role("button", name="Copy this answer").last.click()
    expect(page.get_by_text("Copied").last).to_be_attached()
    return str(page.evaluate("navigator.clipboard.readText()"))


Line = tuple[Server, Page]


def begun(page: Page) -> None:
    """Wait until an answer has begun, and is not at its end."""
    page.wait_for_timeout(200)
    expect(page.locator("[data-phase=writing]")).to_be_visible(timeout=30_000)
    page.wait_for_timeout(400)


def test_a_whole_answer_streams(there: Line, picture: Callable[..., None]) -> None:
    server, page = there
    ask(page, "How does the water find its way?")
    begun(page)
    picture(page, f"{server.name}-writing")
    finished(page, timeout=120_000)
    assert copied(page) == RECITAL
    picture(page, f"{server.name}-answer")


def test_the_network_goes_away_in_mid_answer(there: Line) -> None:
    _, page = there
    ask(page, "How does the water find its way?")
    begun(page)
    page.context.set_offline(True)
    expect(page.locator("[data-phase=down]")).to_be_visible()
    page.wait_for_timeout(1_500)
    page.context.set_offline(False)
    finished(page, timeout=120_000)
    assert copied(page) == RECITAL


def test_a_reload_in_mid_answer(there: Line) -> None:
    _, page = there
    ask(page, "How does the water find its way?")
    begun(page)
    page.reload()
    finished(page, timeout=120_000)
    assert copied(page) == RECITAL


def test_stop_frees_the_engine(there: Line) -> None:
    _, page = there
    ask(page, "How does the water find its way?")
    begun(page)
    page.get_by_role("button", name="Stop the answer").click()
    finished(page)
    expect(page.get_by_text("Stopped.", exact=True).last).to_be_visible()
    assert len(copied(page)) < len(RECITAL)


def test_the_status_view_draws_the_chain(there: Line, picture: Callable[..., None]) -> None:
    server, page = there
    page.get_by_role("link", name="Status of the service").click()
    expect(page.locator(".hop strong")).to_have_text(["nginx", "backend", "litellm", "vllm"])
    picture(page, f"{server.name}-status")
