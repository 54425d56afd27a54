"""The renderer process, started by the command and by an engine."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from PIL import Image

from tests.helpers.tiny_run import ROOT, Listener, fork_tiny_run
from tests.helpers.told_runs import ToldRun, coloured_places
from trainer_engine.contract.events import ErrorEvent, Severity
from trainer_engine.contract.run import RunFolder
from trainer_engine.report import background
from trainer_engine.report.background import BackgroundRenderer, render_in_background


def call(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "trainer_engine.report", str(folder)], capture_output=True, text=True, cwd=ROOT, timeout=60
    )


def test_command_writes_grid_and_curves_and_prints_their_paths(tmp_path: Path) -> None:
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


def test_run_without_steps_has_no_report(tmp_path: Path) -> None:
    run = ToldRun(tmp_path / "run")
    run.checkpoint(1)
    done = call(run.folder.path)
    assert (done.returncode, done.stdout) == (0, "")
    assert not run.folder.grid.exists() and not run.folder.curves.exists()


def test_folder_without_a_run_is_an_error_of_one_line(tmp_path: Path) -> None:
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


def test_engine_draws_its_report_without_an_event(tmp_path: Path) -> None:
    options = {
        "validation_disable": False,
        "validation_prompt": "a boat",
        "validation_num_inference_steps": 2,
        "validation_step_interval": 2,
    }
    run = fork_tiny_run(tmp_path, **options, validation_resolution="64x64")
    assert run.wait() == 0, run.log()
    with Image.open(run.folder.grid) as grid:
        assert grid.width > 200
    assert "steps 1 to 4 of 4" in run.folder.curves.read_text()
    assert [entry.data["code"] for entry in run.of_type("error")] == []


def test_failed_run_is_drawn_up_to_its_last_step(tmp_path: Path) -> None:
    run = ToldRun(tmp_path / "run")
    run.step(1)
    try:
        with render_in_background(run.folder, Listener(), is_first=True) as renderer:
            assert renderer is not None
            renderer.begin()
            raise RuntimeError("the run fails")
    except RuntimeError:
        pass
    assert run.folder.curves.exists()


def test_process_without_a_journal_has_no_renderer(tmp_path: Path) -> None:
    run = ToldRun(tmp_path / "run")
    with render_in_background(run.folder, Listener(), is_first=False) as renderer:
        assert renderer is None
    with render_in_background(RunFolder(tmp_path / "none"), Listener(), is_first=True) as renderer:
        assert renderer is None


def test_failure_is_one_warning_and_ends_the_drawing(tmp_path: Path) -> None:
    events = Listener()
    renderer = BackgroundRenderer(RunFolder(tmp_path), events)  # no journal there: the process fails
    renderer.begin()
    renderer.note_news()
    deadline = time.monotonic() + 30
    while not events.events and time.monotonic() < deadline:
        renderer.look()
        time.sleep(0.01)
    renderer.note_news()
    renderer.look()
    renderer.finish()
    (warning,) = events.of(ErrorEvent)
    assert warning.severity is Severity.WARNING and warning.code == "picture_failed"
    assert f"{background.MODULE} {tmp_path}" in warning.hint


def test_report_is_drawn_seldom_whatever_happens(tmp_path: Path) -> None:
    run = ToldRun(tmp_path / "run")
    run.step(1)
    renderer = BackgroundRenderer(run.folder, Listener())
    renderer.begin()
    deadline = time.monotonic() + 30
    while not run.folder.curves.exists() and time.monotonic() < deadline:
        renderer.note_news()
        renderer.look()
        time.sleep(0.01)
    renderer.finish()
    drawn_at = run.folder.curves.stat().st_mtime_ns
    for _ in range(1000):
        renderer.note_news()
        renderer.look()
    assert run.folder.curves.stat().st_mtime_ns == drawn_at


def test_renderer_killed_with_its_process_group_is_no_failure(tmp_path: Path) -> None:
    events = Listener()
    run = ToldRun(tmp_path / "run")
    run.step(1)
    renderer = BackgroundRenderer(run.folder, events)
    renderer.begin()
    renderer.note_news()
    renderer.look()
    assert renderer._process is not None
    renderer._process.terminate()
    renderer.finish()
    assert events.events == [] and run.folder.curves.exists()
