"""The page on a real server, through its nginx, LiteLLM and vLLM, as people meet it."""

from __future__ import annotations

import contextlib
import socket
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from browser_kit import ask, axe, finished
from front import ROOT
from playwright.sync_api import Browser, Page, expect
from test_looks import SHAPES

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
def server(request: pytest.FixtureRequest) -> Server:
    """Return a server that serves."""
    server = servers()[request.param]
    if reason := reason_against(server):
        pytest.skip(reason)
    return server


@contextlib.contextmanager
def page_of(server: Server, chromium: Browser, **shape: Any) -> Iterator[Page]:
    """Open a server's page; nothing on it may fail or be refused by its own policy."""
    context = chromium.new_context(ignore_https_errors=True, **shape)
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    complaints: list[str] = []
    page = context.new_page()
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda said: complaints.append(said.text) if "Policy" in said.text else None)
    page.goto(f"https://{server.address}/")
    yield page
    context.close()
    assert complaints == []


def enter(server: Server, page: Page) -> None:
    """Log in with the owner's key."""
    page.get_by_label("Key").fill(server.key)
    page.keyboard.press("Enter")
    expect(page.get_by_label("Your message")).to_be_visible()


@pytest.fixture
def there(server: Server, chromium: Browser) -> Iterator[tuple[Server, Page]]:
    """Return a server and its page, logged in with the owner's key."""
    with page_of(server, chromium) as page:
        enter(server, page)
        yield server, page


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


@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_for_everybody(
    server: Server, chromium: Browser, picture: Callable[..., None], shape: str
) -> None:
    with page_of(server, chromium, **SHAPES[shape]) as page:
        expect(page.get_by_label("Key")).to_be_visible()
        assert axe(page) == []
        enter(server, page)
        ask(page, "How does the water find its way?")
        begun(page)
        page.get_by_role("button", name="Stop the answer").click()
        finished(page)
        picture(page, f"{server.name}-{shape}")
        assert axe(page) == []
        assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
        page.get_by_role("link", name="Status of the service").click()
        expect(page.locator(".hop strong")).to_have_count(4)
        assert axe(page) == []
