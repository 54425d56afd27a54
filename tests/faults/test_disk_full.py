"""A disk without space in mid-run: the run says so and ends, and what was whole stays whole."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from tests.helpers.live_server import start_server
from tests.helpers.served_runs import ENDED, ENDLESS, ServedRuns, wait_until
from tests.helpers.small_disk import fill_up, small_file_system
from trainer_engine.contract.checkpoint_files import list_checkpoints, verify
from trainer_engine.contract.output_lock import LOCK_FILE

MEGABYTE = 1 << 20


@pytest.fixture
def small_disk(runs: ServedRuns, tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 MB and 400 files."""
    with small_file_system(tmp_path / "disk", megabytes=64) as disk:
        yield disk
        runs.end_all()


@pytest.fixture
def runs_on_a_small_home(tmp_path: Path) -> Iterator[ServedRuns]:
    """A server whose home is a small disk; data, caches and results lie on a large one."""
    with small_file_system(tmp_path / "disk", megabytes=32) as disk, start_server(disk / "home") as server:
        served = ServedRuns(server, tmp_path / "data")
        yield served
        (disk / "filler").unlink(missing_ok=True)
        served.end_all()


def use_up_space(disk: Path, leave: int) -> None:
    free = shutil.disk_usage(disk).free
    with (disk / "somebody-elses").open("wb") as stream:
        stream.write(bytes(max(0, free - leave)))


def use_up_files(disk: Path, leave: int) -> None:
    """No more than ``leave`` files and folders can be made; there is space enough."""
    for _ in range(os.statvfs(disk).f_ffree - leave):
        try:
            (disk / f"small-{uuid4().hex}").touch()
        except OSError:
            return


def keep_files_used_up(runs: ServedRuns, job_id: str, disk: Path, leave: int) -> bool:
    """Whether the run has ended. A save that was under way removes an older checkpoint: the files that this frees are taken too."""
    use_up_files(disk, leave)
    return runs.status(job_id) in ENDED


def check_end(runs: ServedRuns, job_id: str, output: Path) -> str:
    """Error 60, older checkpoints whole, nothing half-written; the newest one's name."""
    job = runs.wait_for_end(job_id)
    assert (job["status"], job["job_info"]["error_code"]) == ("error", "disk_full"), (job, runs.log(job_id))
    assert job["job_info"]["hint"]
    assert '"exit_code": 60' in runs.folder(job_id).exit_file.read_text().replace('"exit_code":60', '"exit_code": 60')
    whole = list_checkpoints(output)
    assert whole and all(verify(info.path) == [] for info in whole)
    assert {path.name for path in output.glob(".*")} <= {LOCK_FILE}, "nothing half-written is left"
    newest = Path(runs.announced(job_id)[-1]).name
    assert newest == whole[0].name, "no announced checkpoint is lost"
    runs.check_log(job_id)
    return newest


@pytest.mark.parametrize("leave", [0, 3, 6])
def test_a_disk_that_fills_up_in_a_save_keeps_the_older_checkpoint_and_the_run_continues_later(
    runs: ServedRuns, small_disk: Path, leave: int
) -> None:
    output = small_disk / "output"
    job_id = runs.start(str(output), max_train_steps=ENDLESS, checkpoint_step_interval=40, checkpoints_total_limit=2)
    runs.wait_for_checkpoint(job_id)
    wait_until(lambda: keep_files_used_up(runs, job_id, small_disk, leave), "the end of a run on a disk without files")
    newest = check_end(runs, job_id, output)

    for path in small_disk.glob("small-*"):
        path.unlink()
    step = int(newest.partition("-")[2])
    again = runs.start(str(output), max_train_steps=step + 2)
    assert runs.wait_for_end(again)["status"] == "completed", runs.log(again)
    assert runs.steps(again) == [step + 1, step + 2]


def test_a_save_that_cannot_fit_is_not_even_begun(runs: ServedRuns, small_disk: Path) -> None:
    output = small_disk / "output"
    job_id = runs.start(str(output), max_train_steps=ENDLESS, checkpoint_step_interval=40, checkpoints_total_limit=2)
    runs.wait_for_checkpoint(job_id)
    use_up_space(small_disk, leave=MEGABYTE)
    check_end(runs, job_id, output)
    assert "to be free" in runs.job(job_id)["job_info"]["error"]


def test_a_full_home_costs_no_training_and_the_reason_is_found(runs_on_a_small_home: ServedRuns) -> None:
    runs = runs_on_a_small_home
    job_id = runs.start("output", max_train_steps=ENDLESS, checkpoint_step_interval=ENDLESS)
    runs.wait_for_step(job_id, 3)
    filler = fill_up(runs.server.home.parent)
    wait_until(lambda: not runs.engine(job_id), "an engine that has ended")
    saved = list_checkpoints(runs.output("output"))
    assert saved and verify(saved[0].path) == []
    filler.unlink()
    job = runs.wait_for_end(job_id)
    assert (job["status"], job["job_info"]["error_code"]) == ("error", "disk_full"), (job, runs.log(job_id))
    assert "is full" in job["job_info"]["error"] and saved[0].name in job["job_info"]["error"]
    runs.check_log(job_id)
    assert runs.announced(job_id) == [saved[0].name]

    again = runs.start("output", max_train_steps=saved[0].step + 2)
    assert runs.wait_for_end(again)["status"] == "completed", runs.log(again)
    assert runs.steps(again) == [saved[0].step + 1, saved[0].step + 2]


def test_a_run_that_is_to_wait_continues_once_the_home_has_room(runs_on_a_small_home: ServedRuns) -> None:
    runs = runs_on_a_small_home
    job_id = runs.start("output", max_train_steps=1000, checkpoint_step_interval=ENDLESS, disk_low_action="wait")
    runs.wait_for_step(job_id, 3)
    filler = fill_up(runs.server.home.parent)
    journal = runs.folder(job_id).journal
    wait_until(lambda: stands_still(journal), "a journal that takes no more")
    assert runs.engine(job_id)
    filler.unlink()
    assert runs.wait_for_end(job_id)["status"] == "completed", runs.log(job_id)
    assert runs.steps(job_id) == list(range(1, 1001))
    runs.check_log(job_id)


def stands_still(path: Path) -> bool:
    size = path.stat().st_size
    time.sleep(1)
    return path.stat().st_size == size
