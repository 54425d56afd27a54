"""The process that draws, called as people and engines call it."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from PIL import Image

from tests.helpers.tiny_run import ROOT, Listener, start_tiny_run
from tests.helpers.told_runs import ToldRun, coloured_places
from trainer_engine.contract.events import ErrorEvent, Severity
from trainer_engine.contract.run import RunFolder
from trainer_engine.report import background
from trainer_engine.report.background import BackgroundRenderer, painted


def call(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "trainer_engine.report", str(folder)], capture_output=True, text=True, cwd=ROOT, timeout=60
    )


def test_both_pictures_of_a_run_are_written_and_named(tmp_path: Path) -> None:
    run = ToldRun(tmp_path / "run")
    run.image(0, "#c80000", kind="base_model")
    run.step(1)
    run.image(1, "#00c800")
    done = call(run.folder.path)
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout.split() == [str(run.folder.curves), str(run.folder.grid)]
    places = coloured_places(run.folder.grid)
    assert places[200, 0, 0][1] < places[0, 200, 0][1], "the base model comes first"
    curves = run.folder.curves.read_text()
    assert "boats" in curves and "pixart_sigma · full · step 1 of 100" in curves


def test_a_run_that_has_not_begun_leaves_no_pictures(tmp_path: Path) -> None:
    run = ToldRun(tmp_path / "run")
    run.checkpoint(1)
    done = call(run.folder.path)
    assert (done.returncode, done.stdout) == (0, "")
    assert not run.folder.grid.exists() and not run.folder.curves.exists()


def test_a_folder_without_a_run_is_told_in_one_line(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        done = call(folder)
        assert done.returncode == 1 and len(done.stderr.splitlines()) == 1, done.stderr


def loaded_by(module: str) -> set[str]:
    """Which of the heavy libraries a module brings with it."""
    code = f"import sys, {module}; print(*({{'torch', 'numpy', 'matplotlib'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    return set(done.stdout.split())


def test_drawing_loads_no_torch_and_matplotlib_only_for_curves() -> None:
    assert loaded_by("trainer_engine.report.__main__") == set()
    assert loaded_by("trainer_engine.report.grid") == set()
    assert loaded_by("trainer_engine.report.curves") == {"numpy", "matplotlib"}


def test_an_engine_draws_its_run_and_tells_nothing_of_it(tmp_path: Path) -> None:
    options = {
        "validation_disable": False,
        "validation_prompt": "a boat",
        "validation_num_inference_steps": 2,
        "validation_step_interval": 2,
    }
    run = start_tiny_run(tmp_path, **options, validation_resolution="64x64")
    assert run.wait() == 0, run.log()
    with Image.open(run.folder.grid) as grid:
        assert grid.width > 200
    assert "steps 1 to 4 of 4" in run.folder.curves.read_text()
    assert [entry.data["code"] for entry in run.of_type("error")] == []


def test_a_run_that_fails_is_drawn_as_far_as_it_came(tmp_path: Path) -> None:
    run = ToldRun(tmp_path / "run")
    run.step(1)
    try:
        with painted(run.folder, Listener(), is_first=True) as who:
            assert who is not None
            who.begin()
            raise RuntimeError("the run fails")
    except RuntimeError:
        pass
    assert run.folder.curves.exists()


def test_nobody_draws_where_no_journal_is_kept_or_another_process_keeps_it(tmp_path: Path) -> None:
    run = ToldRun(tmp_path / "run")
    with painted(run.folder, Listener(), is_first=False) as who:
        assert who is None
    with painted(RunFolder(tmp_path / "none"), Listener(), is_first=True) as who:
        assert who is None


def test_a_failure_is_one_warning_and_the_end_of_drawing(tmp_path: Path) -> None:
    heard = Listener()
    who = BackgroundRenderer(RunFolder(tmp_path), heard)  # no journal there: the process fails
    who.begin()
    who.note_news()
    deadline = time.monotonic() + 30
    while not heard.events and time.monotonic() < deadline:
        who.look()
        time.sleep(0.01)
    who.note_news()
    who.look()
    who.finish()
    (warning,) = heard.of(ErrorEvent)
    assert warning.severity is Severity.WARNING and warning.code == "picture_failed"
    assert f"{background.MODULE} {tmp_path}" in warning.hint


def test_pictures_are_drawn_seldom_however_much_news_there_is(tmp_path: Path) -> None:
    run = ToldRun(tmp_path / "run")
    run.step(1)
    who = BackgroundRenderer(run.folder, Listener())
    who.begin()
    deadline = time.monotonic() + 30
    while not run.folder.curves.exists() and time.monotonic() < deadline:
        who.note_news()
        who.look()
        time.sleep(0.01)
    who.finish()
    drawn_at = run.folder.curves.stat().st_mtime_ns
    for _ in range(1000):
        who.note_news()
        who.look()
    assert run.folder.curves.stat().st_mtime_ns == drawn_at


def test_a_drawer_that_was_killed_with_its_group_is_no_fault(tmp_path: Path) -> None:
    heard = Listener()
    run = ToldRun(tmp_path / "run")
    run.step(1)
    who = BackgroundRenderer(run.folder, heard)
    who.begin()
    who.note_news()
    who.look()
    assert who._process is not None
    who._process.terminate()
    who.finish()
    assert heard.events == [] and run.folder.curves.exists()
