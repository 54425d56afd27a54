"""The pages in a real browser, with a real server behind them: what moves by itself, and that nothing else is loaded."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.helpers.browser import Browser, find_browser
from tests.helpers.live_server import LiveServer, free_port
from tests.helpers.served_runs import ENDLESS, ServedRuns

pytestmark = [pytest.mark.slow, pytest.mark.skipif(find_browser() is None, reason="needs Chromium")]
SHOTS = os.environ.get("SIMPLETUNER_TEST_SCREENSHOTS", "")
"""A folder for pictures of the pages, for people."""
VALIDATES = {
    "validation_disable": False,
    "validation_prompt": "a <b>white</b> boat",
    "validation_steps": 10,
    "validation_num_inference_steps": 2,
    "validation_resolution": "64x64",
    "checkpoint_step_interval": 20,
}


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


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    with Browser(tmp_path / "profile") as browser:
        yield browser


def shot(browser: Browser, name: str) -> None:
    if SHOTS:
        browser.screenshot(Path(SHOTS) / f"{name}.png")


def check_quiet(browser: Browser, runs: ServedRuns) -> None:
    """No error in the console, no request to another host, nothing wider than the window."""
    browser.value_of("1")
    assert browser.console == []
    hosts = {urlsplit(address).netloc for address in browser.requests if not address.startswith(("data:", "about:"))}
    assert hosts == {urlsplit(runs.server.url).netloc}


def test_a_run_is_watched_stopped_and_found_again(runs: ServedRuns, browser: Browser) -> None:
    job = runs.start("watched", max_train_steps=ENDLESS, **VALIDATES)
    waiting = runs.start("waiting", max_train_steps=5)
    browser.open(f"{runs.server.url}/")
    browser.wait_until("document.querySelector('.state.running') && document.querySelector('[data-part=runs] progress')")
    assert browser.value_of("document.querySelector('#run-2').parentElement.textContent.includes('waits for run 1')")
    browser.open(f"{runs.server.url}/runs/1")
    for script in (
        "document.getElementById('live').textContent === 'live'",
        "document.querySelectorAll('#charts figure:not([hidden]) path').length >= 3",
        "parseInt(document.querySelector('[data-fact=step]').textContent.replace(',', '')) >= 21",
        "document.querySelector('[data-part=images] .pair figcaption').textContent === 'base model'",
        "[...document.querySelectorAll('[data-part=images] .prompt')].some((one) => one.textContent === 'a <b>white</b> boat')",
        "document.querySelector('[data-part=checkpoints] code').textContent.startsWith('checkpoint-')",
        "document.querySelectorAll('#charts line.checkpoint').length > 0",
        "document.title.includes('Run 1')",
    ):
        browser.wait_until(script)
    assert browser.value_of("[...document.querySelectorAll('[data-part=images] img')].every((one) => one.alt)")
    for width, is_dark in ((1280, False), (400, True)):
        browser.resize(width, 900, is_dark=is_dark)
        browser.wait_until(f"innerWidth === {width}")
        assert browser.value_of("document.documentElement.scrollWidth <= innerWidth")
        shot(browser, f"run-{width}")
    browser.value_of("document.querySelector('#log-scale').click()")
    before = browser.value_of("document.querySelector('[data-fact=step]').textContent")
    browser.wait_until(f"document.querySelector('[data-fact=step]').textContent !== '{before}'")

    browser.value_of("document.querySelector('#press-1-stop').click()")
    browser.wait_until("document.querySelector('.state.stopped') && document.querySelector('#live').textContent === 'ended'")
    assert runs.wait_for_end(job)["status"] == "stopped"
    assert browser.value_of("document.querySelector('#press-1-start-again') !== null && document.querySelector('#press-1-stop') === null")
    runs.wait_for_end(waiting)
    browser.open(f"{runs.server.url}/")
    browser.wait_until("document.querySelectorAll('.state.stopped, .state.completed').length === 2")
    assert browser.value_of("document.querySelectorAll('.run .thumb img').length") == 1
    assert browser.value_of("document.documentElement.scrollWidth <= innerWidth")
    shot(browser, "list-400")
    check_quiet(browser, runs)


def test_cancel_asks_and_the_keyboard_answers(runs: ServedRuns, browser: Browser) -> None:
    job = runs.start("cancelled", max_train_steps=ENDLESS)
    runs.wait_for_step(job, 1)
    number = len(runs.server.get("/api/training/jobs", headers={"Accept": "application/json"}).json()["jobs"])
    browser.open(f"{runs.server.url}/runs/{number}")
    press = f"document.querySelector('#press-{number}-cancel')"
    assert not browser.value_of(f"{press}.checkVisibility()")
    browser.value_of(f"document.querySelector('#ask-{number}-cancel summary').focus()")
    for kind in ("keyDown", "keyUp"):
        browser.call("Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", windowsVirtualKeyCode=13, text="\r")
    browser.wait_until(f"{press}.checkVisibility()")
    assert runs.status(job) == "running"
    browser.value_of(f"{press}.click()")
    browser.wait_until("document.querySelector('.state.cancelled')")
    assert runs.wait_for_end(job)["status"] == "cancelled"
    check_quiet(browser, runs)


def test_a_hidden_tab_gives_its_connection_back(runs: ServedRuns, browser: Browser) -> None:
    browser.open(f"{runs.server.url}/")
    browser.wait_until("document.querySelector('#live').textContent === 'live'")
    hide = "Object.defineProperty(document, 'hidden', {{value: {0}, configurable: true}});"
    tell = "document.dispatchEvent(new Event('visibilitychange')); document.querySelector('#live').textContent"
    assert browser.value_of(hide.format("true") + tell) == "paused"
    browser.value_of(hide.format("false") + tell)
    browser.wait_until("document.querySelector('#live').textContent === 'live'")
    check_quiet(browser, runs)
