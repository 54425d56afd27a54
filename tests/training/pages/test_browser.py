"""The pages in a real browser, with a real server behind them: what moves by itself, and that nothing else is loaded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from tests.helpers.browser import EVERY_LOOK, Tab, needs_browser, open_browser, open_tab, texts, until, what_it_holds
from tests.helpers.live_server import LiveServer, free_port, start_server
from tests.helpers.log_writer import LogWriter
from tests.helpers.served_runs import ENDLESS, ServedRuns

pytestmark = [pytest.mark.browser, needs_browser]
VALIDATES = {
    "validation_disable": False,
    "validation_prompt": "a <b>white</b> boat",
    "validation_steps": 10,
    "validation_num_inference_steps": 2,
    "validation_resolution": "64x64",
    "checkpoint_step_interval": 20,
}
HIDE = """(value) => {
  Object.defineProperty(document, 'hidden', {value, configurable: true});
  document.dispatchEvent(new Event('visibilitychange'));
}"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedRuns]:
    home = tmp_path_factory.mktemp("browser")
    server = LiveServer(home, free_port()).start()
    served = ServedRuns(server, home / "place")
    try:
        yield served
    finally:
        served.end_all()
        server.stop()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser() as browser:
        yield browser


@pytest.fixture
def tab(browser: Browser) -> Iterator[Tab]:
    with open_tab(browser) as tab:
        yield tab


def test_a_run_is_watched_stopped_and_found_again(runs: ServedRuns, tab: Tab) -> None:
    page, url = tab.page, runs.server.url
    job = runs.start("watched", max_train_steps=ENDLESS, **VALIDATES)
    waiting = runs.start("waiting", max_train_steps=5)
    page.goto(f"{url}/")
    expect(page.locator(".state.running")).to_be_visible()
    expect(page.locator("[data-part=runs] progress")).to_be_visible()
    expect(page.locator(f"[data-job='{waiting}']")).to_contain_text("waits for run 1")
    page.goto(f"{url}/runs/1")
    expect(page.locator("#live")).to_have_text("live")
    page.wait_for_selector("#charts figure:not([hidden]) path >> nth=2", state="attached")
    runs.wait_for_step(job, 21)
    expect(page.locator("[data-part=images] .pair figcaption").first).to_have_text("base model")
    assert "a <b>white</b> boat" in texts(page.locator("[data-part=images] .prompt"))
    expect(page.locator("[data-part=checkpoints] code").first).to_contain_text("checkpoint-")
    page.wait_for_selector("#charts line.checkpoint", state="attached")
    assert "Run 1" in page.title()
    assert page.locator("[data-part=images] img:not([alt]), [data-part=images] img[alt='']").count() == 0
    tab.check_page("run-while-it-trains", EVERY_LOOK)
    page.check("#log-scale")
    before = page.locator("[data-fact=step]").inner_text()
    expect(page.locator("[data-fact=step]")).not_to_have_text(before)

    page.click("#press-1-stop")
    expect(page.locator("[data-part=head] .state")).to_have_text("stopped")
    expect(page.locator("#live")).to_have_text("ended")
    assert runs.wait_for_end(job)["status"] == "stopped"
    expect(page.locator("#press-1-stop")).to_have_count(0)
    tab.check_page("run-that-was-stopped", EVERY_LOOK)
    runs.wait_for_end(waiting)
    page.goto(f"{url}/")
    expect(page.locator(".state.stopped, .state.completed")).to_have_count(2)
    expect(page.locator(".run .thumb img")).to_have_count(1)
    tab.check_page("runs", EVERY_LOOK)
    tab.check_quiet(url)


def test_cancel_asks_and_the_keyboard_answers(runs: ServedRuns, tab: Tab) -> None:
    page = tab.page
    job = runs.start("cancelled", max_train_steps=ENDLESS)
    runs.wait_for_step(job, 1)
    number = next(one["number"] for one in runs.server.get("/api/training/jobs").json()["jobs"] if one["job_id"] == job)
    page.goto(f"{runs.server.url}/runs/{number}")
    press = page.locator(f"#press-{number}-cancel")
    expect(press).to_be_hidden()
    page.focus(f"#open-{number}-cancel")
    page.keyboard.press("Enter")
    expect(press).to_be_visible()
    assert runs.status(job) == "running"
    page.keyboard.press("Tab")
    expect(press).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("[data-part=head] .state")).to_have_text("cancelled")
    assert runs.wait_for_end(job)["status"] == "cancelled"
    tab.check_quiet(runs.server.url)


def test_a_hidden_tab_gives_its_connection_back(runs: ServedRuns, tab: Tab) -> None:
    page, live = tab.page, tab.page.locator("#live")
    page.goto(f"{runs.server.url}/")
    expect(live).to_have_text("live")
    page.evaluate(HIDE, True)
    expect(live).to_have_text("paused")
    page.evaluate(HIDE, False)
    expect(live).to_have_text("live")
    tab.check_quiet(runs.server.url)


def test_a_page_stays_small_over_ten_thousand_events(browser: Browser, tmp_path: Path) -> None:
    with start_server(tmp_path, arguments=("--no-worker",)) as server, LogWriter(tmp_path) as writer, open_tab(browser) as tab:
        job = writer.write("new", "running")
        tab.page.goto(f"{server.url}/runs/1")
        expect(tab.page.locator("#live")).to_have_text("live")
        writer.write("fill", job, 1_000)
        expect(tab.page.locator("[data-fact=step]")).to_have_text("1,000 of 1,000")
        before = what_it_holds(tab.page)
        writer.write("fill", job, 10_000)
        writer.write("events", job, 400, 0, 300)
        expect(tab.page.locator("[data-fact=step]")).to_have_text("10,000 of 10,000")
        expect(tab.page.locator("#charts .readout").first).to_contain_text("step 10,000")
        expect(tab.page.locator("[data-part=events] li")).to_have_count(60)
        after = what_it_holds(tab.page)
        assert after.nodes < before.nodes + 1_000
        assert after.bytes < 60_000_000
        tab.check_quiet(server.url)


def test_the_admin_renews_the_page_of_a_run_where_it_changed_and_only_while_it_is_seen(browser: Browser, tmp_path: Path) -> None:
    with start_server(tmp_path, arguments=("--no-worker",)) as server, LogWriter(tmp_path) as writer, open_tab(browser) as tab:
        page, answers = tab.page, list[int]()
        job = writer.write("new", "running")
        page.goto(f"{server.url}/admin/training/job/{job}/change/")
        page.on("response", lambda answer: answers.append(answer.status) if "/admin/training/job/" in answer.url else None)
        heights = page.evaluate("[...document.querySelectorAll('.object-tools a, .object-tools button')].map((one) => one.offsetHeight)")
        assert len(heights) > 2 and len(set(heights)) == 1, heights
        page.evaluate("document.querySelector('.field-status').isStillThere = true")
        until(page, lambda: answers.count(304) > 1)
        assert set(answers) == {304}, "nothing has changed"
        writer.write("fill", job, 7)
        expect(page.locator(".field-progress_bar")).to_contain_text("step 7 of 7")
        assert 200 in answers and page.evaluate("document.querySelector('.field-status').isStillThere"), "it is no new page"
        page.evaluate(HIDE, True)
        page.wait_for_timeout(4_000)  # a pause is three seconds, and an answer may be on its way
        asked = len(answers)
        writer.write("events", job, 1, 0, 30)
        page.wait_for_timeout(7_000)
        assert len(answers) == asked, "a hidden tab asks for nothing"
        page.evaluate(HIDE, False)
        expect(page.locator("#events .text").first).to_have_text("x" * 30)
        page.focus("#events a")  # the end is shown to a reader whose keyboard is at one part of the page
        writer.write("move", job, "stopped")
        expect(page.locator(".field-status")).to_contain_text("stopped")
        page.evaluate("document.activeElement.blur()")
        expect(page.locator("[data-goes-on]")).to_have_count(0)
        expect(page.locator(".field-status")).to_contain_text("stopped")
        tab.check_quiet(server.url)
