"""A disk that takes no journal costs no training: the run saves and ends, or waits, as disk_low_action says."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.served_runs import wait_until
from tests.helpers.small_disk import fill_up, small_file_system
from tests.helpers.tiny_run import EndedRun, RunFiles, run_in_this_process, start_run, tiny_datasets, tiny_options, train_here
from trainer_engine.contract.checkpoint_files import verify
from trainer_engine.contract.errors import ExitCode
from trainer_engine.contract.hooks import EVERYTHING
from trainer_engine.contract.output_lock import LOCK_FILE
from trainer_engine.contract.run import JobSpec, RunFolder


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_file_system(tmp_path / "disk", megabytes=8) as mounted:
        yield mounted


def run_on(disk: Path, place: Path, meanwhile: Callable[[RunFiles], None], **options: Any) -> EndedRun:
    """A run whose folder lies on the small disk, its data and results elsewhere; ``meanwhile`` is called after its third step."""

    def steer(run: RunFiles) -> None:
        run.wait_for("training.progress", count=3)
        meanwhile(run)

    folder = RunFolder(disk / "run").create()
    chosen = tiny_options(place, **{"max_train_steps": 400, "checkpoint_step_interval": 1000, **options})
    JobSpec(job_id="run", options=chosen, datasets=tiny_datasets(place), scripts=EVERYTHING).write(folder)
    folder.log.symlink_to(place / "train.log")  # so that a test can read it while the disk is full
    return run_in_this_process(folder, steer)


def check_journal(run: RunFiles) -> list[int]:
    """Numbers without gaps, steps without gaps; the steps."""
    assert [entry.seq for entry in run.entries()] == list(range(len(run.entries())))
    steps = [int(entry.data["step"]) for entry in run.of_type("training.progress")]
    assert steps == list(range(1, len(steps) + 1))
    return steps


def test_a_run_with_the_action_stop_saves_and_ends_with_the_reason(tmp_path: Path, disk: Path) -> None:
    run = run_on(disk, tmp_path, lambda _: fill_up(disk))
    assert run.code == ExitCode.DISK, run.log()
    saved = run.newest_checkpoint()
    assert verify(saved.path) == []
    report = run.report()
    assert report is not None and report.error_code == "disk_full" and str(disk) in report.message and saved.name in report.message
    assert check_journal(run)[-1] == saved.step < 400
    assert Path(run.of_type("training.checkpoint")[-1].extra["checkpoint"]["path"]) == saved.path

    (disk / "filler").unlink()
    assert train_here(tmp_path, max_train_steps=saved.step + 2).step == saved.step + 2


@pytest.mark.slow
def test_a_run_with_the_action_wait_continues_by_itself(tmp_path: Path, disk: Path) -> None:
    seen = []

    def fill_and_empty(run: RunFiles) -> None:
        filler = fill_up(disk)
        wait_until(lambda: "disk_low" in run.log(), "a run that waits")
        seen.append(len(run.of_type("training.progress")))
        filler.unlink()

    run = run_on(disk, tmp_path, fill_and_empty, disk_low_action="wait")
    assert run.code == ExitCode.COMPLETED, run.log()
    assert check_journal(run) == list(range(1, 401)) and seen[0] < 400
    codes = [entry.data.get("code") for entry in run.of_type("notification")]
    assert codes.count("disk_low") == codes.count("disk_space_again") == 1


def test_a_waiting_run_saves_on_a_stop(tmp_path: Path, disk: Path) -> None:
    def fill_and_stop(run: RunFiles) -> None:
        fill_up(disk)
        wait_until(lambda: "disk_low" in run.log(), "a run that waits")
        run.send(signal.SIGTERM)

    run = run_on(disk, tmp_path, fill_and_stop, disk_low_action="wait")
    assert run.code == ExitCode.STOPPED, run.log()
    report = run.report()
    assert report is not None and report.status == "stopped"
    assert check_journal(run)[-1] == run.newest_checkpoint().step


@pytest.mark.slow
def test_a_script_that_frees_space_lets_the_run_continue(tmp_path: Path, disk: Path) -> None:
    script = tmp_path / "tidy.sh"
    script.write_text(f"#!/bin/sh\nrm {disk}/filler\n")
    script.chmod(0o755)
    run = run_on(disk, tmp_path, lambda _: fill_up(disk), disk_low_action="script", disk_low_script=str(script))
    assert run.code == ExitCode.COMPLETED, run.log()
    assert check_journal(run) == list(range(1, 401))
    codes = [entry.data.get("code") for entry in run.of_type("notification")]
    assert "script_completed" in codes and not (disk / "filler").exists()


def test_a_run_whose_folder_is_full_reports_it_before_it_loads_anything(tmp_path: Path, disk: Path) -> None:
    folder = RunFolder(disk / "run").create()
    JobSpec(job_id="run", options=tiny_options(tmp_path), datasets=tiny_datasets(tmp_path)).write(folder)
    folder.log.touch()
    fill_up(disk)
    run = start_run(folder)
    assert run.wait() == ExitCode.DISK
    assert [path.name for path in run.output_dir.iterdir()] == [LOCK_FILE]
