"""The line fails while an answer is being written: nothing is lost, nothing comes twice."""

from __future__ import annotations

from collections.abc import Callable

from browser_kit import KEY, Service, ask, axe, finished, says
from playwright.sync_api import Page, expect


def test_the_network_goes_away_and_comes_back(
    page: Page, service: Service, picture: Callable[..., None]
) -> None:
    whole = service.teller.count(400, 0.01)
    ask(page)
    expect(page.locator(".prose")).to_contain_text("w50 ")
    page.context.set_offline(True)
    expect(page.locator("[data-phase=down]")).to_be_visible()
    assert axe(page) == []
    picture(page, "line-down")
    page.context.set_offline(False)
    expect(page.get_by_text("Connected again; nothing was lost.")).to_be_visible()
    picture(page, "line-back")
    finished(page)
    says(page, whole)


def test_connections_are_cut_again_and_again(page: Page, service: Service) -> None:
    whole = service.teller.count(400, 0.01)
    ask(page)
    for seen in (40, 120, 200, 300):
        expect(page.locator(".prose")).to_contain_text(f"w{seen} ")
        service.cut()
    finished(page)
    says(page, whole)
    assert len([line for line in service.front.seen if "/events" in line]) >= 5


def test_the_service_is_away_for_a_while(page: Page, service: Service) -> None:
    whole = service.teller.count(300, 0.01)
    ask(page)
    expect(page.locator(".prose")).to_contain_text("w50 ")
    service.front.down = True
    service.cut()
    expect(page.get_by_role("button", name="Try now")).to_be_visible()
    page.wait_for_timeout(2_000)
    service.front.down = False
    page.get_by_role("button", name="Try now").click()
    finished(page)
    says(page, whole)


def test_a_reload_in_mid_answer_goes_on(page: Page, service: Service) -> None:
    whole = service.teller.count(500, 0.01)
    ask(page)
    expect(page.locator(".prose")).to_contain_text("w150 ")
    page.reload()
    finished(page)
    says(page, whole)
    resumed = [line for line in service.front.seen if "/events" in line][-1]
    assert int(resumed.rsplit("=", 1)[1]) > 50, "it began anew instead of going on"


def test_a_network_that_holds_streams_gets_polls(
    page: Page, service: Service, picture: Callable[..., None]
) -> None:
    service.front.hold_events = True
    whole = service.teller.count(1_500, 0.01)
    ask(page)
    expect(page.locator("[data-phase=polling]")).to_be_visible(timeout=15_000)
    picture(page, "polling")
    finished(page)
    says(page, whole)
    ask(page)
    expect(page.locator("[data-phase=polling]")).to_be_visible(timeout=2_000)


def test_what_is_no_longer_kept_is_said_to_be_lost(page: Page, service: Service) -> None:
    service.teller.count(2_000, 0.01)
    ask(page)
    expect(page.locator(".prose")).to_contain_text("w50 ")
    service.backend.restart()
    service.cut()
    expect(page.get_by_text("no longer kept by the service").last).to_be_visible()
    expect(page.locator(".prose")).to_contain_text("w0 w1 w2 ")
    whole = service.teller.count(5)
    page.get_by_role("button", name="Retry this answer").click()
    finished(page)
    says(page, whole)


def test_a_log_in_that_ran_out_in_mid_answer_goes_on(page: Page, service: Service) -> None:
    whole = service.teller.count(400, 0.01)
    ask(page)
    expect(page.locator(".prose")).to_contain_text("w50 ")
    page.context.clear_cookies()
    service.cut()
    page.get_by_label("Key").fill(KEY)
    page.keyboard.press("Enter")
    finished(page)
    says(page, whole)


def test_a_hidden_tab_keeps_up(page: Page, service: Service) -> None:
    """Hidden tabs have no animation frames; the text has to come all the same, while it comes."""
    service.teller.count(3_000, 0.01)
    ask(page)
    expect(page.locator(".prose")).to_contain_text("w20 ")
    page.evaluate(
        "Object.defineProperty(document, 'hidden', {get: () => true});"
        "requestAnimationFrame = () => 0"
    )
    expect(page.locator(".prose")).to_contain_text("w300 ")
    expect(page.get_by_role("button", name="Stop the answer")).to_be_visible()
