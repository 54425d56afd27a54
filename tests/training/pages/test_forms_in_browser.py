"""The forms of an environment in a real browser: options are found and checked, captions are written beside their images."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, expect

from tests.helpers.browser import EVERY_LOOK, Tab, needs_browser, open_browser, open_tab, texts
from tests.helpers.live_server import LiveServer, free_port
from tests.helpers.models import tiny_pixart
from tests.helpers.pictures import generate_images

pytestmark = [pytest.mark.browser, needs_browser]
SMALL = {"mixed_precision": "no", "optimizer": "torch-adamw", "resolution": 64, "max_train_steps": 8}
WANTED = {"name": "shapes", "model_family": "pixart_sigma", "model_type": "lora", "images": "datasets/shapes", "trigger_word": "shp"}
SHOWN_OPTIONS = "[data-words]:not([hidden]):visible label code"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    with LiveServer(tmp_path_factory.mktemp("forms"), free_port()).start() as server:
        generate_images(server.home / "datasets/shapes", count=30)
        answer = server.post(
            "/api/configs/environments", json=WANTED | {"options": {**SMALL, "pretrained_model_name_or_path": str(tiny_pixart())}}
        )
        assert answer.status_code == 200, answer.text
        yield server


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser() as browser:
        yield browser


@pytest.fixture
def tab(browser: Browser) -> Iterator[Tab]:
    with open_tab(browser) as tab:
        yield tab


def test_options_are_found_checked_and_edited(server: LiveServer, tab: Tab) -> None:
    page, environment = tab.page, f"{server.url}/environments/shapes"
    page.goto(environment)
    page.fill("#option-search", "learning rate")
    shown = texts(page.locator(SHOWN_OPTIONS))
    assert "learning_rate" in shown and "output_dir" not in shown
    page.fill("#option-search", "")
    page.fill("#id_option_max_train_steps", "-5")
    expect(page.locator("[data-unsaved-note]")).to_be_visible()
    page.click("[value=check]")
    expect(page.locator(".option.wrong input")).to_have_attribute("name", "option_max_train_steps")
    page.fill("#id_option_max_train_steps", "12")
    page.click("[value=check]")
    expect(page.locator("#report-title")).to_contain_text("It can be started")
    tab.check_page("environment", EVERY_LOOK)
    page.goto(f"{environment}/history")
    expect(page.locator("#diff")).to_contain_text("max_train_steps")
    tab.check_page("history", EVERY_LOOK)
    assert [line for line in tab.console if "422" not in line] == []


def test_captions_are_written_where_the_images_are_seen(server: LiveServer, tab: Tab) -> None:
    page, folder = tab.page, server.home / "datasets/shapes"
    page.goto(f"{server.url}/environments/shapes/datasets")
    for number in range(4):
        page.locator(".pictures img").nth(number).scroll_into_view_if_needed()
        expect(page.locator(".pictures img").nth(number)).not_to_have_js_property("naturalWidth", 0)
    page.locator(".pictures textarea").first.fill("a shape")
    page.locator(".pictures textarea").first.blur()
    expect(page.locator(".pictures [role=status]").first).to_contain_text("saved")
    assert [path.read_text() for path in folder.glob("*.txt")] == ["a shape\n"]
    page.click("form[action$=texts] button")
    expect(page.locator(".message.success")).to_be_visible()
    expect(page.locator("#images .hint").first).to_contain_text(" 0 without a text file")
    assert {path.read_text() for path in folder.glob("*.txt")} == {"a shape\n", "shp\n"}
    page.fill("#field-0-repeats", "2")
    page.click("[data-unsaved] button.primary")
    expect(page.locator(".message.success")).to_contain_text("Saved the datasets")
    expect(page.locator("[name='0.repeats']")).to_have_value("2")
    page.locator("[data-picker] button").first.click()
    expect(page.locator(".picker li").first).to_be_visible()
    page.goto(f"{server.url}/environments/shapes/datasets?buckets=1")
    expect(page.locator("#buckets td").first).to_have_text("64 × 64")
    tab.check_page("datasets", EVERY_LOOK)
    tab.check_quiet(server.url)
