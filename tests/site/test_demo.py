"""What the demo makes, and that it makes it again, cleans up after itself and touches nothing else."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import httpx
import psutil
import pytest
from PIL import Image
from playwright.sync_api import expect
from rich.console import Console

from environments.paths import Home
from simpletuner_site.demo import api_steps
from simpletuner_site.demo.api_steps import StepFailed, answered
from simpletuner_site.demo.configuration import PROMPTS, datasets, hyperparameters
from simpletuner_site.demo.folders import DemoFolders
from simpletuner_site.demo.pictures import COLOURS, SCENES, SIZES, caption_of, generate_images
from simpletuner_site.demo.processes import ModelNotMade, ServerFailed, make_base_model, running_server
from simpletuner_site.demo.walkthrough import MADE_BY_DEMO, NotOurFolder, empty, run, stage
from tests.helpers.browser import needs_browser, open_browser, open_tab
from tests.helpers.live_server import REPOSITORY, start_server
from trainer_engine.config.datasets import parse_dataloader
from trainer_engine.config.parse import check_options


def test_the_pictures_are_real_files_of_two_kinds_and_three_shapes(tmp_path: Path) -> None:
    drawn = generate_images(tmp_path)
    assert len(drawn) == len(SCENES) * len(COLOURS) == 36
    assert {path.suffix for path in drawn} == {".jpg", ".png"}
    opened = [Image.open(path) for path in drawn]
    assert {image.size for image in opened} == set(SIZES)
    assert {image.format for image in opened} == {"JPEG", "PNG"}
    assert all(len(image.convert("RGB").getcolors(1 << 20) or []) > 100 for image in opened)


def test_the_same_images_are_generated_every_time(tmp_path: Path) -> None:
    first, second = generate_images(tmp_path / "a"), generate_images(tmp_path / "b")
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_a_picture_s_name_is_its_caption(tmp_path: Path) -> None:
    names = {path.stem for path in generate_images(tmp_path)}
    assert "a white boat on the sea under an orange sky" in names
    assert caption_of("a {} moon", "orange") == "an orange moon"
    assert caption_of("a {} moon", "red") == "a red moon"


def test_the_demo_configuration_is_valid(tmp_path: Path) -> None:
    folders = DemoFolders(tmp_path)
    given = {"--model_family": "pixart_sigma", "--model_type": "full", "--data_backend_config": "x.json", **hyperparameters(folders)}
    options, problems = check_options(given)
    assert [problem for problem in problems if problem.level.value != "note"] == []
    assert options is not None
    dataloader, problems = parse_dataloader(datasets(folders), options)
    assert [problem for problem in problems if problem.level.value != "note"] == []
    assert [entry.id for entry in dataloader.image_sets] == ["demo-pictures"]


def test_everything_lies_in_one_folder(tmp_path: Path) -> None:
    folders = DemoFolders(tmp_path / "demo")
    paths = [folders.pictures, folders.model, folders.hub, folders.output, folders.caches, folders.grid, folders.curves, folders.server_log]
    assert all(path.is_relative_to(folders.root) for path in paths)
    written = json.dumps([datasets(folders), hyperparameters(folders)])
    assert written.count(str(tmp_path)) == written.count(str(folders.root))


def test_wherever_it_lies_its_server_may_use_it(tmp_path: Path) -> None:
    folders = DemoFolders(tmp_path)
    home = Home(folders.root, roots=())
    assert all(home.place_rule.may_write(path.resolve()) for path in (folders.pictures, folders.output, folders.caches))


def test_a_folder_of_somebody_else_is_never_emptied(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("do not delete")
    with pytest.raises(NotOurFolder):
        empty(tmp_path)
    assert run(tmp_path) == 1
    assert (tmp_path / "thesis.txt").read_text() == "do not delete"


def test_a_former_demo_is_cleared_away(tmp_path: Path) -> None:
    empty(tmp_path / "demo")
    (tmp_path / "demo/left-over").write_text("")
    empty(tmp_path / "demo")
    assert [path.name for path in (tmp_path / "demo").iterdir()] == [MADE_BY_DEMO]


def test_a_refusal_of_the_server_is_shown_with_its_problems() -> None:
    problem = {"option": "seed", "code": "x", "message": "seed is wrong.", "got": "", "expected": "", "hint": "leave it out"}
    request = httpx.Request("POST", "http://localhost/api")
    refused = httpx.Response(422, json={"detail": "No.", "problems": [problem]}, request=request)
    with pytest.raises(StepFailed, match="seed is wrong. leave it out"):
        answered(refused)
    with pytest.raises(StepFailed, match="502"):
        answered(httpx.Response(502, text="bad gateway", request=request))
    assert answered(httpx.Response(200, json={"a": 1}, request=request)) == {"a": 1}


def test_a_stage_that_fails_is_not_ticked_off() -> None:
    console = Console(file=io.StringIO(), record=True)
    with pytest.raises(StepFailed), stage(console, "Something"):
        raise StepFailed("no")
    assert "✓" not in console.export_text()


@pytest.mark.slow
def test_a_model_that_cannot_be_made_is_explained(tmp_path: Path) -> None:
    (tmp_path / "base-model").write_text("in the way")
    with pytest.raises(ModelNotMade, match="Error"):
        make_base_model(DemoFolders(tmp_path))


def test_the_steps_go_through_a_real_server_and_nothing_stays(tmp_path: Path) -> None:
    folders = DemoFolders(tmp_path)
    generate_images(folders.pictures)
    with running_server(folders, keep=False) as (client, pid):
        processes = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
        assert api_steps.create_environment(client)["environment"]["name"]
        api_steps.describe_datasets(folders)
        assert api_steps.set_hyperparameters(client, folders)["validation"]["warnings"] == []
        api_steps.activate(client)
        with pytest.raises(StepFailed, match="base-model' does not exist"):
            api_steps.submit(client, "validate")  # nobody has made the demo's model
    assert psutil.wait_procs(processes, timeout=5)[1] == []


def test_a_server_that_does_not_come_up_is_explained(tmp_path: Path) -> None:
    folders = DemoFolders(tmp_path)
    (folders.root / "config").write_text("in the way")
    with pytest.raises(ServerFailed, match="simpletuner server"), running_server(folders, keep=False):
        pass


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[DemoFolders, str]:
    """The folders of a demo that has ended, and what it printed."""
    folders = DemoFolders(tmp_path_factory.mktemp("trained") / "demo")
    command = [sys.executable, "-m", "simpletuner_site.cli", "demo", "--output", str(folders.root)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    return folders, done.stdout


@pytest.mark.slow
def test_the_demo_trains_and_leaves_no_process(trained: tuple[DemoFolders, str]) -> None:
    folders, printed = trained
    assert Image.open(folders.grid).width > 300
    assert b"<title" in folders.curves.read_bytes()
    assert (folders.output / "pipeline/model_index.json").is_file()
    for what in ("checkpoint", "pipeline", "images", "/runs/1"):
        assert what in printed
    left = [process.cmdline() for process in psutil.process_iter() if any(str(folders.root) in part for part in command_of(process))]
    assert left == []


@needs_browser
@pytest.mark.slow
def test_a_server_shows_the_run_of_a_demo_that_has_ended(trained: tuple[DemoFolders, str]) -> None:
    with start_server(trained[0].root, arguments=("--no-worker",)) as server, open_browser() as browser, open_tab(browser, 1100) as tab:
        tab.page.goto(f"{server.url}/runs/1")
        expect(tab.page.locator(".state")).to_have_text("completed")
        expect(tab.page.locator("#charts figure:not([hidden])")).to_have_count(3)
        tab.page.wait_for_load_state("networkidle")
        assert tab.page.locator("[data-part=images] article").count() == len(PROMPTS)
        tab.take_picture("run-page", height=1560)
        tab.check_quiet(server.url)


def command_of(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []
