"""A stranger's way in a real browser: from images on the own disk to a trained LoRA with its image on the page."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.helpers.browser import Browser, find_browser
from tests.helpers.live_server import LiveServer, free_port
from tests.helpers.models import tiny_pixart
from tests.helpers.pictures import generate_images

pytestmark = [pytest.mark.slow, pytest.mark.skipif(find_browser() is None, reason="needs Chromium")]
SHOTS = os.environ.get("SIMPLETUNER_TEST_SCREENSHOTS", "")
"""A folder for pictures of the pages, for people."""
IMAGES = 30
TOO_WIDE = (
    "[...document.querySelectorAll('main *')].filter((one) => one.getBoundingClientRect().right > innerWidth + 1"
    " && !one.closest('.scroll, .strip, pre')).map((one) => one.outerHTML.slice(0, 200))"
)
NAMELESS = (
    "[...document.querySelectorAll('input:not([type=hidden]), select, textarea, button')]"
    ".filter((one) => !(one.labels?.length || one.textContent.trim() || one.ariaLabel)).map((one) => one.outerHTML)"
)
TWICE = "[...document.querySelectorAll('[id]')].map((one) => one.id).filter((id, place, all) => all.indexOf(id) !== place)"
SHOWN_OPTIONS = (
    "[...document.querySelectorAll('[data-words]')].filter((one) => !one.hidden && one.checkVisibility())"
    ".map((one) => one.querySelector('code').textContent)"
)
WRITE_CAPTION = (
    "(() => { const text = document.querySelector('.pictures textarea'); text.value = 'a shape';"
    " text.dispatchEvent(new Event('change', {bubbles: true})); })()"
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    server = LiveServer(tmp_path_factory.mktemp("stranger"), free_port()).start()
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    with Browser(tmp_path / "profile") as browser:
        yield browser


def check_page(browser: Browser, name: str) -> None:
    """Both widths: nothing is wider than the window, and every field and button has a name."""
    for width, is_dark in ((1400, False), (400, True)):
        browser.resize(width, 900, is_dark=is_dark)
        browser.wait_until(f"innerWidth === {width}")
        assert browser.value_of(TOO_WIDE) == []
        assert browser.value_of("document.documentElement.scrollWidth <= innerWidth")
        if SHOTS:
            browser.screenshot(Path(SHOTS) / f"{name}-{width}.png")
    assert browser.value_of(NAMELESS) == []
    assert browser.value_of(TWICE) == []


def check_quiet(browser: Browser, server: LiveServer) -> None:
    browser.value_of("1")
    assert browser.console == []
    hosts = {urlsplit(address).netloc for address in browser.requests if not address.startswith(("data:", "about:"))}
    assert hosts == {urlsplit(server.url).netloc}


def test_a_stranger_trains_a_lora_on_thirty_images(server: LiveServer, browser: Browser, tmp_path: Path) -> None:
    own = generate_images(tmp_path / "own", count=IMAGES)
    (tmp_path / "own/notes.png").write_text("no image")
    with (tmp_path / "own/huge.png").open("wb") as huge:
        huge.truncate(65_000_000)
    browser.open(f"{server.url}/")
    browser.value_of("document.querySelector('.empty a').click()")
    browser.wait_until("location.pathname === '/new' && document.readyState === 'complete'")
    browser.fill(id_name="shapes", id_trigger_word="shp")
    browser.choose_files("[data-files]", [*own, tmp_path / "own/notes.png", tmp_path / "own/huge.png"])
    browser.wait_until("document.querySelector('[data-said]').textContent.includes('are in datasets/shapes now')")
    refused = browser.value_of("[...document.querySelectorAll('[data-refused] li')].map((one) => one.textContent)")
    assert sorted(one.split(" ")[0] for one in refused) == ["'notes.png'", "huge.png:"]
    assert browser.value_of("document.getElementById('id_images').value") == "datasets/shapes"
    assert len(list((server.home / "datasets/shapes").iterdir())) == IMAGES
    browser.value_of("document.getElementById('more').open = true")
    browser.fill(id_model="pixart_sigma/900M-1024-v0.6", id_memory=0, id_weights=tiny_pixart(), id_resolution=64, id_steps=8)
    check_page(browser, "new")
    browser.value_of("document.querySelector('[value=start]').click()")
    browser.wait_until("location.pathname.startsWith('/runs/')")
    browser.wait_until("document.querySelector('.state.completed, .state.error')")
    assert browser.value_of("document.querySelector('.state').textContent") == "completed"
    browser.wait_until("document.querySelector('#compare-1')")
    browser.value_of("document.querySelector('#compare-1').open = true")
    browser.wait_until("[...document.querySelectorAll('.compare img')].every((one) => one.naturalWidth === 64)", 30)
    browser.fill(**{"split-1": 20})
    assert browser.value_of("getComputedStyle(document.querySelector('.compare .above')).clipPath") == "inset(0px 80% 0px 0px)"
    assert browser.value_of("[...document.querySelectorAll('[data-part=images] .prompt')].map((one) => one.textContent)") == [
        "a photograph of shp"
    ]
    check_page(browser, "first-run")
    browser.value_of("document.querySelector('#press-1-export').click()")
    browser.wait_until("document.querySelector('.message') && document.readyState === 'complete'", 200)
    exported = server.home / "output/shapes/comfyui/shapes-checkpoint-8.safetensors"
    assert exported.is_file(), browser.value_of("document.querySelector('.message').textContent")
    assert "comfyui/shapes-checkpoint-8.safetensors" in browser.value_of("document.querySelector('.downloads').textContent")
    check_quiet(browser, server)


def test_options_are_found_checked_and_edited(server: LiveServer, browser: Browser) -> None:
    page = f"{server.url}/environments/shapes"
    browser.open(page)
    browser.fill(**{"option-search": "learning rate"})
    shown = browser.value_of(SHOWN_OPTIONS)
    assert "learning_rate" in shown and "output_dir" not in shown
    browser.fill(**{"option-search": "", "id_option_max_train_steps": "-5"})
    assert browser.value_of("document.querySelector('[data-unsaved-note]').checkVisibility()")
    browser.value_of("document.querySelector('[value=check]').click()")
    browser.wait_until("document.querySelector('.option.wrong input')?.name === 'option_max_train_steps'")
    browser.fill(id_option_max_train_steps="12")
    browser.value_of("document.querySelector('[value=check]').click()")
    browser.wait_until("document.querySelector('#report') && document.readyState === 'complete'")
    assert browser.value_of("document.getElementById('report-title').textContent").startswith("It can be started")
    check_page(browser, "options")
    browser.open(f"{page}/history")
    assert browser.value_of("document.querySelector('#diff').textContent.includes('max_train_steps')")
    check_page(browser, "history")
    assert [line for line in browser.console if "422" not in line] == []


def test_captions_are_written_where_the_images_are_seen(server: LiveServer, browser: Browser) -> None:
    page = f"{server.url}/environments/shapes/datasets"
    browser.open(page)
    browser.wait_until("[...document.querySelectorAll('.pictures img')].slice(0, 4).every((one) => one.complete && one.naturalWidth)")
    browser.value_of(WRITE_CAPTION)
    browser.wait_until("document.querySelector('.pictures [role=status]').textContent.startsWith('saved')")
    assert [path.read_text() for path in (server.home / "datasets/shapes").glob("*.txt")] == ["a shape\n"]
    browser.value_of("document.querySelector('form[action$=texts] button').click()")
    browser.wait_until("document.querySelector('.message.success') && document.readyState === 'complete'")
    assert browser.value_of("document.querySelector('#images .hint').textContent.includes(' 0 without a text file')")
    assert {path.read_text() for path in (server.home / "datasets/shapes").glob("*.txt")} == {"a shape\n", "shp\n"}
    browser.fill(**{"field-0-repeats": "2"})
    browser.value_of("document.querySelector('[data-unsaved] button.primary').click()")
    browser.wait_until("document.querySelector('.message.success')?.textContent.startsWith('Saved the datasets')")
    browser.wait_until("document.querySelector('[data-picker] button')")
    assert browser.value_of("document.querySelector('[name=\"0.repeats\"]').value") == "2"
    browser.value_of("document.querySelector('[data-picker] button').click()")
    browser.wait_until("document.querySelector('.picker li')")
    browser.open(f"{page}?buckets=1")
    assert browser.value_of("document.querySelector('#buckets td').textContent") == "64 × 64"
    check_page(browser, "datasets")
    check_quiet(browser, server)
