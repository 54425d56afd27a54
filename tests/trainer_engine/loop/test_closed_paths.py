"""The engine asks again where it may write: when it starts, and before each stage that writes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from environments.paths import Home
from tests.helpers.tiny_run import RunFiles, run_in_this_process, tiny_datasets, tiny_options
from trainer_engine.contract.commands import Command
from trainer_engine.contract.errors import ExitCode
from trainer_engine.contract.hooks import NOTHING
from trainer_engine.contract.run import JobSpec, RunFolder


@pytest.fixture
def home(tmp_path: Path) -> Home:
    (tmp_path / "served/state/hooks").mkdir(parents=True)
    return Home(tmp_path / "served", roots=(Path("/tmp"),))


def write_job(home: Home, **options: object) -> RunFolder:
    """A job as the server freezes one, with the rule of its home."""
    place = home.root
    folder = RunFolder(home.state / "runs" / "one").create()
    datasets = tiny_datasets(place)
    spec = JobSpec(job_id="one", options=tiny_options(place, **options), datasets=datasets, scripts=NOTHING, places=home.place_rule)
    spec.write(folder)
    return folder


def swap(folder: Path, target: Path) -> None:
    """What another account might do while a job waits: the folder is a link now."""
    if folder.exists():
        folder.rename(folder.with_name(f"{folder.name}-before"))
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.symlink_to(target)


def refused(run: RunFiles, code: int) -> str:
    """The message of a run that ended because of a place."""
    assert code == ExitCode.CONFIGURATION, run.log()
    report = run.report()
    assert report is not None and report.error_code == "invalid_options"
    return report.message


@pytest.mark.parametrize("target", ["state/hooks", "state", "state/runs/one/media"])
@pytest.mark.parametrize(
    ("folder", "option"), [("output", "output_dir"), ("cache/vae", "dataloader[0].cache_dir_vae"), ("cache", "dataloader[1].cache_dir")]
)
def test_a_folder_that_was_swapped_for_a_link_before_the_start_is_refused(home: Home, folder: str, option: str, target: str) -> None:
    job = write_job(home)
    swap(home.root / folder, home.root / target)
    before = sorted(os.listdir(home.root / target))
    run = run_in_this_process(job)
    message = refused(run, run.code)
    assert option in message and "the server's own state" in message
    assert sorted(os.listdir(home.root / target)) == before
    assert not list((home.state / "hooks").iterdir())


def test_pictures_that_were_swapped_for_a_link_to_a_closed_place_are_not_read(home: Home) -> None:
    job = write_job(home)
    swap(home.root / "images", home.state)
    run = run_in_this_process(job)
    assert "instance_data_dir" in refused(run, run.code)


def test_a_folder_that_is_swapped_while_the_run_trains_is_not_written_to(home: Home) -> None:
    def swap_it(run: RunFiles) -> None:
        run.wait_for("training.progress", count=2)
        swap(run.output_dir, home.state / "hooks")
        run.request(Command.CHECKPOINT)

    run = run_in_this_process(write_job(home, max_train_steps=100_000, checkpoint_step_interval=100_000), swap_it)
    assert "output_dir" in refused(run, run.code)
    assert not list((home.state / "hooks").iterdir())


@pytest.mark.slow
def test_a_folder_that_was_moved_to_another_open_place_is_written_to(home: Home, tmp_path: Path) -> None:
    (home.root / "disk").mkdir()
    job = write_job(home, max_train_steps=2)
    swap(home.root / "output", home.root / "disk")
    run = run_in_this_process(job)
    assert run.code == 0, run.log()
    assert (home.root / "disk" / "pipeline").is_dir()
