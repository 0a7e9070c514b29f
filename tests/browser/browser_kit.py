"""What tests of the page share: the service that they talk to, and what people do."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import socket
import ssl
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from backend_upstream import DONE, ROLE, Answer, Received, Upstream, token
from front import ROOT, Front, Running
from playwright.sync_api import Page, expect

WEB = ROOT / "app/web"
AXE = WEB / "node_modules/axe-core/axe.min.js"
KEY = "mr-" + "k" * 43
MODELS = ("recital", "Qwen3-0.6B")


class Teller:
    """What the engine says: `pieces` with `pause` seconds between every `burst` of them."""

    def __init__(self) -> None:
        self.pieces: list[str] = ["Hello", " there", "."]
        # What it thinks before it says anything.
        self.thoughts: list[str] = []
        self.pause = 0.01
        self.burst = 1

    async def __call__(self, request: Received, answer: Answer) -> None:
        wanted = json.loads(request.body)
        pieces = list(self.pieces)
        await answer.head()
        await answer.chunk(ROLE)
        for thought in self.thoughts:
            await asyncio.sleep(self.pause)
            chunk = {"choices": [{"index": 0, "delta": {"reasoning": thought}}]}
            await answer.chunk(b"data: " + json.dumps(chunk).encode() + b"\n\n")
        for at in range(0, len(pieces), self.burst):
            await asyncio.sleep(self.pause)
            await answer.chunk(b"".join(token(text) for text in pieces[at : at + self.burst]))
        if wanted.get("stream_options", {}).get("include_usage"):
            usage = {"prompt_tokens": 7, "completion_tokens": len(pieces)}
            await answer.chunk(b"data: " + json.dumps({"choices": [], "usage": usage}).encode())
            await answer.chunk(b"\n\n")
        await answer.chunk(DONE)
        await answer.end()

    def count(self, words: int, pause: float = 0.01, burst: int = 1) -> str:
        """Tell numbered words, so that one that is lost or doubled is seen; return the whole."""
        self.pieces = [f"w{n} " for n in range(words)]
        self.pause, self.burst = pause, burst
        return "".join(self.pieces).strip()


class Backend:
    """The real backend in a process of its own."""

    def __init__(self, folder: Path, upstream_port: int) -> None:
        self.folder = folder
        credentials = folder / "credentials"
        credentials.mkdir()
        (credentials / "upstream-key").write_text("sk-upstream\n")
        (credentials / "session-secret").write_text("0123456789abcdef" * 4 + "\n")
        entry = {"name": "owner", "sha256": hashlib.sha256(KEY.encode()).hexdigest()}
        (folder / "keys.json").write_text(json.dumps({"version": 2, "keys": [entry]}))
        settings = {
            "upstream_url": f"http://127.0.0.1:{upstream_port}/vllm",
            "upstream_key_credential": "upstream-key",
            "keys_file": str(folder / "keys.json"),
            "session_secret_credential": "session-secret",
            "models": [{"id": name} for name in MODELS],
            "heartbeat_seconds": 5,
            "streamcheck_summary": str(folder / "summary.json"),
            "drain_seconds": 0,
        }
        self.config = folder / "backend.json"
        self.config.write_text(json.dumps(settings))
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT / "app"),
            "CREDENTIALS_DIRECTORY": str(self.folder / "credentials"),
        }
        number = self.listener.fileno()
        command = [sys.executable, "-m", "backend", "--config", str(self.config)]
        with (self.folder / "log").open("ab") as log:
            return subprocess.Popen(
                [*command, "--fd", str(number)], env=environment, pass_fds=[number], stderr=log
            )

    def restart(self) -> None:
        """Kill it, and start another on the same socket: what it had in memory is gone."""
        self.stop()
        self.process = self._start()

    def stop(self) -> None:
        self.process.kill()
        self.process.wait(10)

    def get(self, path: str) -> Any:
        """Ask it with the key."""
        request = urllib.request.Request(
            self.url + path, headers={"Authorization": f"Bearer {KEY}"}
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)


class Service:
    """The page's address and what is behind it."""

    def __init__(self, folder: Path, pages: Path, tls: ssl.SSLContext) -> None:
        self.running = Running()
        self.teller = Teller()
        self.upstream = Upstream()
        self.upstream.script = self.teller
        self.running.do(self.upstream.start())
        self.backend = Backend(folder, self.upstream.port)
        self.front = Front(pages, self.backend.url)
        self.url = f"https://localhost:{self.running.serve(self.front.app(), tls)}/"

    @property
    def asked(self) -> list[dict[str, Any]]:
        """What reached the engine."""
        return [json.loads(request.body) for request in self.upstream.received]

    def cut(self) -> None:
        """Cut the line once."""
        self.running.call(self.front.cut)

    def stop(self) -> None:
        self.backend.stop()
        self.running.do(self.front.close())
        self.running.do(self.upstream.stop())
        self.running.stop()


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


def says(page: Page, whole: str) -> None:
    """Hold the last answer to a text, white space evened."""
    expect(page.locator(".prose").last).to_have_text(whole)


def axe(page: Page) -> list[str]:
    """Return what axe-core finds wrong with the page as it is now."""
    page.evaluate(AXE.read_text())
    found = page.evaluate(
        "axe.run(document, {resultTypes: ['violations']}).then((result) => result.violations.map("
        "(v) => `${v.id}: ${v.help}: ${v.nodes.map((n) => n.html).join(' | ')}`))"
    )
    return list(found)
