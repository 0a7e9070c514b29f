"""Chromium, the built page, and a service behind a line that can fail."""

from __future__ import annotations

import itertools
import os
import shutil
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/app"))  # the scripted upstream

from browser_kit import AXE, WEB, Open, Service, log_in  # noqa: E402
from playwright.sync_api import (  # noqa: E402
    Browser,
    BrowserContext,
    Page,
    expect,
    sync_playwright,
)

PICTURES = ROOT / "artefacts/browser"

# Those without which Chromium looks for its maker's servers at every start.
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip

expect.set_options(timeout=10_000)


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        pytest.skip("chromium is not installed here: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the page."""
    node = Path(sys.executable).with_name("node")
    if not node.exists():
        pytest.skip("node is not in this environment: requirements/dev.txt has it")
    environment = {**os.environ, "PATH": f"{node.parent}:{os.environ['PATH']}"}
    if not AXE.exists():
        subprocess.run(["npm", "ci", "--no-audit"], cwd=WEB, env=environment, check=True)
    target = tmp_path_factory.mktemp("pages")
    subprocess.run(["node", "build.mjs", str(target)], cwd=WEB, env=environment, check=True)
    return target


@pytest.fixture(scope="session")
def tls(tmp_path_factory: pytest.TempPathFactory) -> ssl.SSLContext:
    folder = tmp_path_factory.mktemp("tls")
    key, certificate = folder / "key", folder / "certificate"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
         "-nodes", "-days", "2", "-subj", "/CN=localhost", "-keyout", key, "-out", certificate],
        capture_output=True, check=True,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context


@pytest.fixture
def service(pages: Path, tls: ssl.SSLContext, tmp_path: Path) -> Iterator[Service]:
    folder = tmp_path / "service"
    folder.mkdir()
    started = Service(folder, pages, tls)
    yield started
    started.stop()


@pytest.fixture
def open_page(chromium: Browser, service: Service) -> Iterator[Open]:
    """Open the page in a fresh browser profile; its complaints fail the test."""
    contexts: list[BrowserContext] = []
    complaints: list[str] = []

    def open_it(**options: Any) -> Page:
        context = chromium.new_context(ignore_https_errors=True, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on(
            "console",
            lambda said: (
                complaints.append(said.text)
                if "Content Security Policy" in said.text or "TrustedHTML" in said.text
                else None
            ),
        )
        page.goto(service.url)
        return page

    yield open_it
    for context in contexts:
        context.close()
    assert complaints == []


@pytest.fixture
def page(open_page: Open) -> Page:
    """Return the page, logged in."""
    opened = open_page()
    log_in(opened)
    return opened


@pytest.fixture
def picture(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Keep a picture of the page under artefacts/browser/."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    numbers = itertools.count(1)

    def take(page: Page, name: str = "") -> None:
        label = name or f"{request.node.name}-{next(numbers)}"
        page.screenshot(path=PICTURES / f"{label}.png")

    return take
