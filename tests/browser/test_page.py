"""What people do with the page: log in, ask, stop, try again, edit, keep, delete."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from browser_kit import KEY, Open, Service, ask, axe, finished, log_in
from playwright.sync_api import Page, expect

MARKDOWN = """## A title

Some *text* with `code`, a [link](https://example.org) and a picture ![p](https://example.org/p.png).

1. one
2. two
   - inner

```python
def greet(name: str) -> str:
    return f"Hello, {name}"  # a comment
```

| left | right |
| --- | ---: |
| 1 | 2 |

<script>alert(1)</script><img src=x onerror=alert(1)>

[bad](javascript:alert(1)) and a [late one][late].

> quoted

[late]: https://example.org/late
"""


def tell(service: Service, text: str, size: int = 7, pause: float = 0.005) -> None:
    service.teller.pieces = [text[at : at + size] for at in range(0, len(text), size)]
    service.teller.pause = pause


def test_a_wrong_key_is_refused_and_the_right_one_lets_in(
    open_page: Open, picture: Callable[..., None]
) -> None:
    page = open_page()
    expect(page.get_by_label("Key")).to_be_focused()
    page.get_by_label("Key").fill("nonsense")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("does not know this key")
    assert axe(page) == []
    picture(page, "login")
    log_in(page)
    assert axe(page) == []
    picture(page, "empty")
    page.reload()
    expect(page.get_by_label("Your message")).to_be_visible()
    cookie = page.context.cookies()[0]
    assert cookie["httpOnly"]
    assert cookie["secure"]
    assert cookie["sameSite"] == "Strict"


def test_an_answer_is_shown_as_markdown_and_nothing_in_it_acts(
    page: Page, service: Service, picture: Callable[..., None]
) -> None:
    tell(service, MARKDOWN)
    ask(page, "Show me everything")
    finished(page)
    prose = page.locator(".prose")
    assert prose.locator("script, img, [onerror]").count() == 0
    assert prose.locator("a[href^='javascript']").count() == 0
    expect(prose.get_by_text("<script>alert(1)</script>")).to_be_visible()
    expect(prose.get_by_role("heading", name="A title")).to_be_visible()
    expect(prose.get_by_role("link", name="link", exact=True)).to_have_attribute(
        "rel", "noopener noreferrer nofollow"
    )
    expect(prose.get_by_role("link", name="late one")).to_have_attribute(
        "href", "https://example.org/late"
    )
    expect(prose.locator("ol > li")).to_have_count(2)
    expect(prose.locator("td").last).to_have_text("2")
    expect(prose.locator(".hl-keyword").first).to_be_visible()
    assert axe(page) == []
    picture(page, "markdown")


def test_what_it_thought_is_folded_away_and_never_sent_back(page: Page, service: Service) -> None:
    service.teller.thoughts = ["First I ", "weigh it, ", "then I speak."]
    service.teller.pause = 0.6
    try:
        ask(page, "Think about it")
        expect(page.get_by_text("Thinking …")).to_be_visible()
        finished(page)
    finally:
        service.teller.thoughts, service.teller.pause = [], 0.01
    thought = page.locator("details.reasoning")
    expect(thought.get_by_text("then I speak.")).not_to_be_visible()
    thought.get_by_text("What it thought").click()
    expect(thought.get_by_text("First I weigh it, then I speak.")).to_be_visible()
    assert axe(page) == []
    ask(page, "And now?")
    finished(page, 2)
    sent = service.asked[-1]["messages"]
    assert [message["role"] for message in sent] == ["user", "assistant", "user"]
    assert "weigh" not in json.dumps(sent)


def test_code_and_answers_are_copied(page: Page, service: Service) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    tell(service, MARKDOWN)
    ask(page)
    finished(page)
    page.get_by_role("button", name="Copy this python code").click()
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied.startswith("def greet(name: str)")
    page.get_by_role("button", name="Copy this answer").click()
    assert page.evaluate("navigator.clipboard.readText()") == MARKDOWN


def test_figures_and_the_parameters_that_were_asked_for(page: Page, service: Service) -> None:
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("System prompt").fill("Be brief.")
    page.get_by_label("Temperature").fill("0.3")
    page.get_by_label("Most tokens").fill("50")
    page.get_by_role("button", name="Keep").click()
    page.get_by_label("Model").select_option("Qwen3-0.6B")
    service.teller.count(40)
    ask(page, "Hello")
    finished(page)
    asked = service.asked[-1]
    assert asked["model"] == "Qwen3-0.6B"
    assert (asked["temperature"], asked["max_tokens"], "top_p" in asked) == (0.3, 50, False)
    assert asked["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello"},
    ]
    expect(page.locator(".figures")).to_contain_text("first token")
    expect(page.locator(".figures")).to_contain_text("tokens/s")
    expect(page.locator(".figures")).to_contain_text("40 tokens")


def test_stop_ends_the_generation_on_the_server(page: Page, service: Service) -> None:
    service.teller.count(5_000, 0.02)
    ask(page)
    expect(page.locator(".prose")).to_contain_text("w20 ")
    page.get_by_role("button", name="Stop the answer").click()
    finished(page)
    expect(page.get_by_text("Stopped.", exact=True).last).to_be_visible()
    (made,) = [line for line in service.front.seen if line.endswith("/stop")]
    told = service.backend.get(made.removeprefix("POST ").removesuffix("/stop"))
    assert told["ended"] is True
    assert told["outcome"] == "stopped"
    assert told["last_event_id"] < 1_000
    assert service.upstream.received[-1].gone.is_set(), "the engine went on"


def test_retry_edit_and_undo(page: Page, service: Service) -> None:
    service.teller.pieces = ["first answer"]
    ask(page, "A question")
    finished(page)
    service.teller.pieces = ["second answer"]
    page.get_by_role("button", name="Retry this answer").click()
    expect(page.locator(".prose")).to_have_text("second answer")
    page.get_by_role("button", name="Undo").click()
    expect(page.locator(".prose")).to_have_text("first answer")
    page.get_by_role("button", name="Edit this message").click()
    editor = page.get_by_label("Edit your message")
    expect(editor).to_be_focused()
    editor.fill("Another question")
    page.get_by_role("button", name="Send again").click()
    expect(page.locator(".prose")).to_have_text("second answer")
    expect(page.locator(".said")).to_have_text("Another question")
    assert service.asked[-1]["messages"] == [{"role": "user", "content": "Another question"}]


def test_conversations_are_kept_exported_and_deleted(
    page: Page, service: Service, tmp_path: Path
) -> None:
    for number in range(2):
        service.teller.pieces = [f"answer {number}"]
        ask(page, f"Question {number}")
        finished(page)
        page.get_by_role("button", name="New conversation").click()
    page.reload()
    page.get_by_role("link", name="Question 0").click()
    expect(page.locator(".prose")).to_have_text("answer 0")
    page.get_by_role("button", name="Settings").click()
    with page.expect_download() as download:
        page.get_by_role("button", name="Export as JSON").click()
    file = tmp_path / "export.json"
    download.value.save_as(file)
    exported: dict[str, Any] = json.loads(file.read_text())
    texts = [m["text"] for c in exported["conversations"] for m in c["messages"]]
    assert sorted(texts) == ["Question 0", "Question 1", "answer 0", "answer 1"]
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Delete Question 1").click()
    expect(page.get_by_role("link", name="Question 1")).to_have_count(0)
    page.get_by_role("button", name="Undo").click()
    expect(page.get_by_role("link", name="Question 1")).to_have_count(1)
    page.get_by_role("button", name="Settings").click()
    page.get_by_role("button", name="Delete all conversations").click()
    page.get_by_role("button", name="Really delete everything").click()
    page.keyboard.press("Escape")
    expect(page.get_by_text("Nothing is kept yet.")).to_be_visible()
    page.reload()
    expect(page.get_by_text("Nothing is kept yet.")).to_be_visible()


def test_a_draft_survives_the_end_of_a_session(page: Page, service: Service) -> None:
    page.get_by_label("Your message").fill("half a thought")
    page.context.clear_cookies()
    page.get_by_role("link", name="Status of the service").click()
    expect(page.get_by_label("Key")).to_be_visible()
    log_in_here(page)
    page.get_by_role("link", name="Back to the conversation").click()
    expect(page.get_by_label("Your message")).to_have_value("half a thought")


def log_in_here(page: Page) -> None:
    page.get_by_label("Key").fill(KEY)
    page.keyboard.press("Enter")
    expect(page.get_by_label("Key")).to_have_count(0)


def test_the_keyboard_is_enough(page: Page, service: Service) -> None:
    service.teller.count(2_000, 0.02)
    expect(page.get_by_label("Your message")).to_be_focused()
    page.keyboard.type("First line")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("second")
    page.keyboard.press("Enter")
    expect(page.locator(".said")).to_have_text("First line\nsecond")
    expect(page.locator(".prose")).to_contain_text("w5 ")
    expect(page.get_by_label("Your message")).to_be_focused()
    page.keyboard.press("Escape")
    finished(page)
    page.keyboard.press("Shift+Tab")
    expect(page.get_by_role("button", name="Retry this answer")).to_be_focused()
    first = page.locator("a[href], button, input, textarea, select").first
    expect(first).to_have_text("Skip to the conversation")
    first.focus()
    page.keyboard.press("Enter")
    expect(page.locator("main")).to_be_focused()


def test_those_who_listen_are_told_of_changes_not_of_tokens(page: Page, service: Service) -> None:
    page.evaluate(
        "window.said = []; new MutationObserver(() => said.push("
        "document.querySelector('[aria-live]').textContent)).observe("
        "document.querySelector('[aria-live]'), {subtree: true, childList: true,"
        " characterData: true})"
    )
    service.teller.count(200)
    ask(page)
    finished(page)
    assert page.evaluate("window.said") == ["Waiting for the answer.", "The answer is complete."]


def test_the_status_view_draws_what_the_backend_says(page: Page, service: Service) -> None:
    page.get_by_role("link", name="Status of the service").click()
    told = service.backend.get("/v1/status")
    expect(page.locator(".hop strong")).to_have_text([hop["name"] for hop in told["hops"]])
    expect(page.get_by_text("No stream check has been run yet.")).to_be_visible()
