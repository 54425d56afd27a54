"""Forms and curves in a real browser: another run laid over, sets added with a picked folder, large files dropped with their captions."""

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

from tests.helpers.browser import Browser, find_browser
from tests.helpers.live_server import REPOSITORY, LiveServer, start_server
from tests.helpers.pictures import generate_images

pytestmark = [pytest.mark.slow, pytest.mark.skipif(find_browser() is None, reason="needs Chromium")]
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
PATHS = "document.querySelectorAll('#charts figure:not([hidden]) path.other').length"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    home = tmp_path_factory.mktemp("forms")
    with start_server(home) as live:
        for name in ("cats", "dogs"):
            generate_images(home / "datasets" / name, count=3, size=(64, 64))
        new = {"name": "cats", "model_family": "pixart_sigma", "model_type": "full", "images": "datasets/cats"}
        assert live.post("/api/configs/environments", json=new).status_code == 200
        yield live


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    with Browser(tmp_path / "profile") as browser:
        yield browser


def test_another_run_is_laid_over_the_curves_and_taken_away(server: LiveServer, browser: Browser) -> None:
    variables = {**os.environ, "SIMPLETUNER_HOME": str(server.home), "DJANGO_SETTINGS_MODULE": "simpletuner_site.settings"}
    command = [sys.executable, "-c", TWO_RUNS, str(server.home)]
    subprocess.run(command, env=variables, cwd=REPOSITORY, check=True)
    browser.open(f"{server.url}/runs/2")
    browser.wait_until("document.querySelectorAll('#charts figure:not([hidden]) path').length >= 3")
    assert browser.value_of(PATHS) == 0
    choose = (
        "(() => {{ const list = document.getElementById('other'); list.selectedIndex = {0}; list.dispatchEvent(new Event('input')); }})()"
    )
    assert browser.value_of("document.querySelector('#other').options[1].textContent").startswith("Run 1")
    browser.value_of(choose.format(1))
    browser.wait_until(f"{PATHS} === 3")
    assert browser.value_of("document.querySelector('#charts path.other').getAttribute('d').length") > 40
    browser.value_of("document.querySelector('#log-scale').click()")
    assert browser.value_of(PATHS) == 3, "it stays when the scale changes"
    browser.value_of(choose.format(0))
    browser.wait_until(f"{PATHS} === 0")
    assert browser.console == []


@pytest.mark.parametrize("width", [1400, 400])
def test_a_set_is_added_with_a_picked_folder_and_removed(server: LiveServer, browser: Browser, width: int) -> None:
    browser.resize(width, 900)
    browser.open(f"{server.url}/environments/cats/datasets")
    browser.value_of("document.querySelector('form[action=\"#new\"] button').click()")
    browser.wait_until("document.getElementById('field-new-id')")
    browser.value_of("document.querySelector('#new [data-picker] button').click()")
    for name in ("datasets", "dogs"):
        browser.wait_until(f"[...document.querySelectorAll('#new .picker button')].find((one) => one.textContent.endsWith('{name}'))")
        browser.value_of(f"[...document.querySelectorAll('#new .picker button')].find((one) => one.textContent.endsWith('{name}')).click()")
    use = "[...document.querySelectorAll('#new .picker button')].find((one) => one.textContent === 'Use this folder')"
    browser.wait_until(f"document.querySelector('#new .picker [role=status]').textContent.endsWith('dogs') && {use}")
    browser.value_of(f"{use}.click()")
    assert browser.value_of("document.getElementById('field-new-instance_data_dir').value").endswith("/datasets/dogs")
    browser.value_of("document.querySelector('#new button[value=add]').click()")
    browser.wait_until("document.querySelector('.message.error')")
    assert browser.value_of("document.getElementById('field-new-instance_data_dir').value").endswith("/datasets/dogs"), "typed once"
    browser.value_of("document.getElementById('field-new-id').value = 'dogs'; document.querySelector('#new button[value=add]').click()")
    browser.wait_until("document.querySelector('.message.success')")
    assert browser.value_of("document.documentElement.scrollWidth <= innerWidth")
    path = server.home / "config/cats/multidatabackend.json"
    assert [one["id"] for one in json.loads(path.read_text())][-1] == "dogs"
    browser.value_of("[...document.querySelectorAll('details.ask')].pop().open = true")
    browser.value_of("[...document.querySelectorAll('button[name=remove]')].pop().click()")
    browser.wait_until("document.querySelector('.message.success')?.textContent.includes('Removed')")
    assert "dogs" not in [one["id"] for one in json.loads(path.read_text())] and len(list((server.home / "datasets/dogs").iterdir())) == 3
    assert [line for line in browser.console if "422" not in line] == []


def test_large_files_are_sent_with_their_captions_and_broken_ones_named(server: LiveServer, browser: Browser, tmp_path: Path) -> None:
    stream = io.BytesIO()
    Image.frombytes("RGB", (2000, 2000), os.urandom(12_000_000)).save(stream, "PNG", compress_level=0)
    (tmp_path / "large.png").write_bytes(stream.getvalue())
    (tmp_path / "large.txt").write_text("a large one")
    (tmp_path / "broken.png").write_bytes(b"no image")
    browser.open(f"{server.url}/environments/cats/datasets")
    browser.value_of("document.querySelector('[data-unsaved]').dataset.isChanged = ''")  # keeps the page, which reloads otherwise
    browser.choose_files("[data-files]", [tmp_path / name for name in ("large.png", "large.txt", "broken.png")])
    browser.wait_until("document.querySelector('[data-said]').textContent.includes('stored')")
    said = browser.value_of("document.querySelector('[data-said]').textContent")
    assert said.startswith("1 image and 1 caption of 3 files stored"), said
    refused = browser.value_of("document.querySelector('[data-refused]').textContent")
    assert "broken.png" in refused and "large" not in refused
    assert (server.home / "datasets/cats/large.txt").read_text() == "a large one"
    assert (server.home / "datasets/cats/large.png").read_bytes() == stream.getvalue()
    assert browser.console == []
