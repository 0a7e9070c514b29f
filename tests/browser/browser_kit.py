"""What tests of the page share: the service that they talk to, and what people do."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from front import ROOT, Front, Running
from playwright.sync_api import Page, expect
from streams_standin import KEY, Standin

WEB = ROOT / "app/web"
AXE = WEB / "node_modules/axe-core/axe.min.js"


class Teller:
    """What the model says: `pieces` with `pause` seconds between them."""

    def __init__(self) -> None:
        self.pieces: list[str] = ["Hello", " there", "."]
        self.pause = 0.01
        self.burst = 1

    async def __call__(self, body: dict[str, Any]) -> AsyncIterator[str]:
        for number, piece in enumerate(list(self.pieces)):
            if number % self.burst == 0:
                await asyncio.sleep(self.pause)
            yield piece

    def count(self, words: int, pause: float = 0.01, burst: int = 1) -> str:
        """Tell numbered words, so that one that is lost or doubled is seen; return the whole."""
        self.pieces = [f"w{n} " for n in range(words)]
        self.pause, self.burst = pause, burst
        return "".join(self.pieces).strip()


class Service:
    """The page's address and what is behind it."""

    def __init__(self, running: Running, pages: Path, tls: ssl.SSLContext) -> None:
        self.running = running
        self.teller = Teller()
        self.standin = Standin(self.teller)
        port = running.serve(self.standin.app())
        self.front = Front(pages, f"http://127.0.0.1:{port}")
        self.url = f"https://localhost:{running.serve(self.front.app(), tls)}/"


Open = Callable[..., Page]


def log_in(page: Page) -> None:
    page.get_by_label("Key").fill(KEY)
    page.get_by_role("button", name="Log in").click()
    expect(page.get_by_label("Your message")).to_be_visible()


def ask(page: Page, text: str = "Tell me something") -> None:
    page.get_by_label("Your message").fill(text)
    page.get_by_role("button", name="Send").click()


def finished(page: Page, answers: int = 1, timeout: float = 30_000) -> None:
    """Wait until that many answers have ended."""
    expect(page.get_by_role("button", name="Retry this answer")).to_have_count(
        answers, timeout=timeout
    )


def words(page: Page) -> str:
    """Return the last answer's text, its white space evened."""
    return " ".join((page.locator(".prose").last.text_content() or "").split())


def axe(page: Page) -> list[str]:
    """Return what axe-core finds wrong with the page as it is now."""
    page.evaluate(AXE.read_text())
    found = page.evaluate(
        "axe.run(document, {resultTypes: ['violations']}).then((result) => result.violations.map("
        "(v) => `${v.id}: ${v.help}: ${v.nodes.map((n) => n.html).join(' | ')}`))"
    )
    return list(found)
