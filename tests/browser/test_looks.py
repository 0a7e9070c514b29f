"""Sizes, colours, and answers as long as they come."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from browser_kit import Open, Service, ask, axe, finished, log_in
from front import ROOT
from playwright.sync_api import Browser, Page, expect
from test_page import MARKDOWN, tell

FIGURES = ROOT / "artefacts/figures.txt"

STATUS = {
    "ready": True,
    "reason": None,
    "hops": [
        {"name": "nginx", "state": "ok", "detail": ""},
        {"name": "backend", "state": "ok", "detail": "3 streams"},
        {"name": "litellm", "state": "down", "detail": "connection refused"},
        {"name": "vllm", "state": "unknown", "detail": ""},
    ],
    "streamcheck": {
        "when": "2026-11-26T02:00:00Z",
        "verdict": "nginx holds bytes back",
        "hops": [
            {"name": "vllm", "verdict": "streams", "median_gap_ms": 10.2, "first_token_ms": 41.0,
             "reads": [[0.04 + n * 0.01, 1] for n in range(200)]},
            {"name": "nginx", "verdict": "buffers", "median_gap_ms": 500.1, "first_token_ms": 540.0,
             "reads": [[0.5 * n, 50] for n in range(1, 5)]},
        ],
    },
}  # fmt: skip

SHAPES = {
    "desktop-light": {"color_scheme": "light"},
    "desktop-dark": {"color_scheme": "dark"},
    "phone-light": {
        "color_scheme": "light", "viewport": {"width": 360, "height": 740},
        "has_touch": True, "is_mobile": True, "device_scale_factor": 2,
    },
    "phone-dark": {
        "color_scheme": "dark", "viewport": {"width": 360, "height": 740},
        "has_touch": True, "is_mobile": True, "device_scale_factor": 2,
    },
}  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
def test_every_view_in_every_shape(
    open_page: Open, service: Service, picture: Callable[..., None], shape: str
) -> None:
    page = open_page(**SHAPES[shape])
    expect(page.get_by_label("Key")).to_be_visible()
    assert axe(page) == []
    log_in(page)
    tell(service, MARKDOWN)
    page.route("**/v1/status", lambda route: route.fulfill(json=STATUS))
    phone = shape.startswith("phone")
    ask(page, "Show me what an answer can look like, with code and a table")
    finished(page)
    expect(page.locator(".hl-keyword").first).to_be_attached()
    page.wait_for_timeout(300)
    picture(page, f"{shape}-chat")
    assert axe(page) == []
    width = page.evaluate("document.documentElement.scrollWidth - innerWidth")
    assert width <= 0, "the page is wider than the screen"
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(23, 23, 21)") == shape.endswith("dark")
    page.get_by_role("button", name="Settings").click()
    picture(page, f"{shape}-settings")
    assert axe(page) == []
    page.keyboard.press("Escape")
    expect(page.get_by_role("button", name="Settings")).to_be_focused()
    if phone:
        page.get_by_role("button", name="Conversations").click()
        expect(page.get_by_role("dialog").get_by_role("link", name="Show me")).to_be_visible()
        picture(page, f"{shape}-drawer")
        assert axe(page) == []
        page.keyboard.press("Escape")
    page.get_by_role("link", name="Status of the service").click()
    expect(page.get_by_text("nginx holds bytes back")).to_be_visible()
    expect(page.locator("main")).to_be_focused()
    picture(page, f"{shape}-status")
    assert axe(page) == []


PARAGRAPH = "The stream goes on and on, with *some* emphasis and `code` in it, to its end. "
LONG = {
    # What answers are made of, what never ends, and what is one line.
    "prose": lambda n: (
        f"{PARAGRAPH * 3}\n\n"
        if n % 9
        else f"## Part {n}\n\n- a\n- b\n\n```python\nx = {n}\n```\n\n"
    ),
    "code": lambda n: f"line_{n} = compute({n})  # and so on\n" if n else "```python\n",
    "list": lambda n: f"{n + 1}. item {n} with **some** words and [a link](https://example.org)\n",
    "table": lambda n: f"| {n} | some words | more |\n" if n else "| a | b | c |\n|---|---|---|\n",
    "line": lambda n: f"word{n} goes on ",
}  # fmt: skip
TOKENS = 100_000
CHARACTERS_A_TOKEN = 4


LONGEST_MS = 200


class Tasks:
    """The tasks of the page's main thread, in ms of its own time: what else the machine does, and
    that is much while tests run, is not the page's. Nor is what the test itself asks the page."""

    def __init__(self, browser: Browser, page: Page) -> None:
        self.browser = browser
        browser.start_tracing(page=page, categories=["toplevel"])

    def stop(self) -> list[float]:
        """Return what each task of the busiest main thread took, the longest first."""
        events = json.loads(self.browser.stop_tracing())["traceEvents"]
        names = {
            (e["pid"], e["tid"])
            for e in events
            if e.get("name") == "thread_name" and e["args"]["name"] == "CrRendererMain"
        }
        spent: dict[tuple[int, int], list[Any]] = {}
        for event in events:
            where = (event["pid"], event["tid"])
            if where in names and event.get("ph") == "X" and "tdur" in event:
                spent.setdefault(where, []).append(event)
        busiest = max(spent.values(), key=lambda each: sum(event["tdur"] for event in each))
        asked = [event for event in busiest if "DevToolsSession" in json.dumps(event.get("args"))]
        of_the_page = [
            event["tdur"] / 1000
            for event in busiest
            if not any(overlap(event, message) for message in asked)
        ]
        return sorted(of_the_page, reverse=True)


def overlap(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two events of a trace share time."""
    return bool(one["ts"] < other["ts"] + other["dur"] and other["ts"] < one["ts"] + one["dur"])


@pytest.mark.parametrize("kind", LONG)
def test_a_long_answer_never_holds_the_page_up(
    chromium: Browser, open_page: Open, service: Service, kind: str
) -> None:
    """100,000 tokens, as fast as they come: no task of the page takes longer than 200 ms."""
    text = "".join(LONG[kind](n) for n in range(TOKENS))[: TOKENS * CHARACTERS_A_TOKEN]
    page = open_page()
    log_in(page)
    page.evaluate(
        "window.tasks = []; new PerformanceObserver((list) => tasks.push(...list.getEntries()"
        ".map((task) => Math.round(task.duration)))).observe({type: 'longtask'})"
    )
    tell(service, text, size=CHARACTERS_A_TOKEN)
    service.teller.pause, service.teller.burst = 0.01, 50
    tasks = Tasks(chromium, page)
    ask(page)
    finished(page, timeout=180_000)
    page.wait_for_timeout(500)
    live = tasks.stop()
    seen = page.evaluate("Math.max(0, ...window.tasks)")
    note(f"{kind}: 100,000 tokens, longest task {live[0]:.0f} ms (by the clock {seen}), "
         f"{sum(live) / 1000:.1f} s in all")  # fmt: skip
    end = page.locator(".prose").last.evaluate("(box) => box.textContent.trim().slice(-8)")
    assert end in " ".join(text.replace("|", "").split()) + text, "its end is missing"
    # Opened again, it is drawn whole, and the page is no less quick.
    tasks = Tasks(chromium, page)
    page.reload()
    finished(page)
    page.wait_for_timeout(3_000)
    again = tasks.stop()
    note(f"{kind}, opened again: longest task {again[0]:.0f} ms, {sum(again) / 1000:.1f} s in all")
    assert live[0] <= LONGEST_MS
    assert again[0] <= LONGEST_MS


def note(text: str) -> None:
    """Keep a figure beside the others that a run measured."""
    print(text)
    FIGURES.parent.mkdir(exist_ok=True)
    with FIGURES.open("a") as file:
        file.write(f"  the page, {text}\n")
