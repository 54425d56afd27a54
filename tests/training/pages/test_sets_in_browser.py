"""Datasets and curves in a real browser: another run laid over, sets added with a picked folder, large files sent with their captions."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Browser, expect

from tests.helpers.browser import needs_browser, open_browser, open_tab
from tests.helpers.live_server import REPOSITORY, LiveServer, start_server
from tests.helpers.pictures import generate_images

pytestmark = [pytest.mark.browser, needs_browser]
TWO_RUNS = """
import sys, django
django.setup()
from pathlib import Path
from tests.helpers.jobs import make_job
from tests.training.pages.test_run_page import PROGRESS, append, progress
from training.models import Status
for factor in (1.0, 2.0):
    job = make_job(Path(sys.argv[1]), Status.COMPLETED, progress=PROGRESS, environment="cats")
    append(job, *(progress(step, factor / step) for step in range(1, 41)))
"""
OTHER = "#charts figure:not([hidden]) path.other"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    home = tmp_path_factory.mktemp("sets")
    with start_server(home) as live:
        for name in ("cats", "dogs"):
            generate_images(home / "datasets" / name, count=3, size=(64, 64))
        new = {"name": "cats", "model_family": "pixart_sigma", "model_type": "full", "images": "datasets/cats"}
        assert live.post("/api/configs/environments", json=new).status_code == 200
        yield live


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser() as browser:
        yield browser


def test_another_run_is_laid_over_the_curves_and_taken_away(server: LiveServer, browser: Browser) -> None:
    variables = {**os.environ, "SIMPLETUNER_HOME": str(server.home), "DJANGO_SETTINGS_MODULE": "simpletuner_site.settings"}
    subprocess.run([sys.executable, "-c", TWO_RUNS, str(server.home)], env=variables, cwd=REPOSITORY, check=True)
    with open_tab(browser) as tab:
        page = tab.page
        page.goto(f"{server.url}/runs/2")
        expect(page.locator("#charts figure:not([hidden]) path").nth(2)).to_be_attached()
        expect(page.locator(OTHER)).to_have_count(0)
        expect(page.locator("#other option").nth(1)).to_contain_text("Run 1")
        page.select_option("#other", index=1)
        expect(page.locator(OTHER)).to_have_count(3)
        assert len(page.locator(OTHER).first.get_attribute("d") or "") > 40
        page.click("#log-scale")
        expect(page.locator(OTHER)).to_have_count(3)  # it stays when the scale changes
        page.select_option("#other", index=0)
        expect(page.locator(OTHER)).to_have_count(0)
        tab.check_quiet(server.url)


@pytest.mark.parametrize("width", [1400, 400])
def test_a_set_is_added_with_a_picked_folder_and_removed(server: LiveServer, browser: Browser, width: int) -> None:
    datasets = server.home / "config/cats/multidatabackend.json"
    with open_tab(browser, width) as tab:
        page = tab.page
        page.goto(f"{server.url}/environments/cats/datasets")
        page.click('form[action="#new"] button')
        page.click("#new [data-picker] button")
        for name in ("datasets", "dogs"):
            page.locator("#new .picker button").filter(has_text=name).last.click()
        expect(page.locator("#new .picker [role=status]")).to_contain_text("dogs")
        page.locator("#new .picker button", has_text="Use this folder").click()
        folder = page.locator("#field-new-instance_data_dir")
        assert folder.input_value().endswith("/datasets/dogs")
        page.click("#new button[value=add]")
        expect(page.locator(".message.error").first).to_contain_text("Nothing was saved.")
        assert folder.input_value().endswith("/datasets/dogs"), "what was typed stays"
        page.fill("#field-new-id", "dogs")
        page.click("#new button[value=add]")
        expect(page.locator(".message.success")).to_be_visible()
        tab.check_page("set-added", [(width, "light")])
        assert [one["id"] for one in json.loads(datasets.read_text())][-1] == "dogs"
        page.locator("details.ask summary").last.click()
        page.locator("button[name=remove]").last.click()
        expect(page.locator(".message.success")).to_contain_text("Removed")
        assert "dogs" not in [one["id"] for one in json.loads(datasets.read_text())]
        assert len(list((server.home / "datasets/dogs").iterdir())) == 3
        assert [line for line in tab.console if "422" not in line] == []


def test_large_files_are_sent_with_their_captions_and_broken_ones_named(server: LiveServer, browser: Browser, tmp_path: Path) -> None:
    stream = io.BytesIO()
    Image.frombytes("RGB", (2000, 2000), os.urandom(12_000_000)).save(stream, "PNG", compress_level=0)
    (tmp_path / "large.png").write_bytes(stream.getvalue())
    (tmp_path / "large.txt").write_text("a large one")
    (tmp_path / "broken.png").write_bytes(b"no image")
    with open_tab(browser) as tab:
        page = tab.page
        page.goto(f"{server.url}/environments/cats/datasets")
        page.evaluate("document.querySelector('[data-unsaved]').dataset.isChanged = ''")  # keeps the page, which is loaded again otherwise
        page.set_input_files("[data-files]", [tmp_path / name for name in ("large.png", "large.txt", "broken.png")])
        expect(page.locator("[data-said]")).to_contain_text("1 image and 1 caption of 3 files stored")
        expect(page.locator("[data-refused]")).to_contain_text("broken.png")
        expect(page.locator("[data-refused]")).not_to_contain_text("large")
        tab.check_quiet(server.url)
    assert (server.home / "datasets/cats/large.txt").read_text() == "a large one"
    assert (server.home / "datasets/cats/large.png").read_bytes() == stream.getvalue()


def test_a_caption_that_is_being_typed_stays_while_images_are_sent(server: LiveServer, browser: Browser, tmp_path: Path) -> None:
    for name in ("blue", "grey"):
        Image.new("RGB", (64, 64), name).save(tmp_path / f"{name}.png")
    with open_tab(browser) as tab:
        page = tab.page
        page.goto(f"{server.url}/environments/cats/datasets?order=name")
        first, shown = page.locator(".pictures textarea").first, page.locator(".pictures article").count()
        first.fill("half a caption")
        page.set_input_files("[data-files]", tmp_path / "blue.png")
        expect(page.locator("[data-said]")).to_contain_text("1 image and 0 captions of 1 file stored")
        expect(first).to_have_value("half a caption")
        first.blur()
        expect(page.locator(".pictures [role=status]").first).to_contain_text("saved")
        page.set_input_files("[data-files]", tmp_path / "grey.png")
        expect(page.locator(".pictures article")).to_have_count(shown + 2)  # nothing is left to be saved: the page is loaded again
        expect(first).to_have_value("half a caption\n")
        tab.check_quiet(server.url)
