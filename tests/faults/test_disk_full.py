"""A disk without space in mid-run: the run says so and ends, and what was whole stays whole."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.served_runs import ENDLESS, ServedRuns
from trainer_engine.contract.checkpoint_files import list_checkpoints, verify

MEGABYTE = 1 << 20


@pytest.fixture
def small_disk(runs: ServedRuns, tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 MB and 400 files."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if not shutil.which("mount"):
        pytest.skip("there is no mount command")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m,nr_inodes=400", "tmpfs", str(disk)], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.strip()}")
    try:
        yield disk
    finally:
        runs.end_all()
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def use_up_space(disk: Path, leave: int) -> None:
    free = shutil.disk_usage(disk).free
    with (disk / "somebody-elses").open("wb") as stream:
        stream.write(bytes(max(0, free - leave)))


def use_up_files(disk: Path, leave: int) -> None:
    """No more than ``leave`` files and folders can be made; there is space enough."""
    made: list[Path] = []
    try:
        while True:
            made.append(disk / f"small-{len(made)}")
            made[-1].touch()
    except OSError:
        made.pop()
    for path in made[len(made) - leave :]:
        path.unlink()


def check_end(runs: ServedRuns, job_id: str, output: Path) -> str:
    """Error 60, older checkpoints whole, nothing half-written; the newest one's name."""
    job = runs.wait_for_end(job_id)
    assert (job["status"], job["job_info"]["error_code"]) == ("error", "disk_full"), (job, runs.log(job_id))
    assert job["job_info"]["hint"]
    assert '"exit_code": 60' in runs.folder(job_id).exit_file.read_text().replace('"exit_code":60', '"exit_code": 60')
    whole = list_checkpoints(output)
    assert whole and all(verify(info.path) == [] for info in whole)
    assert not list(output.glob(".*")), "nothing half-written is left"
    newest = Path(runs.announced(job_id)[-1]).name
    assert newest == whole[0].name, "no announced checkpoint is lost"
    runs.check_log(job_id)
    return newest


@pytest.mark.parametrize("leave", [0, 3, 6])
def test_a_disk_that_fills_up_in_a_save_keeps_the_older_checkpoint_and_the_run_goes_on_later(
    runs: ServedRuns, small_disk: Path, leave: int
) -> None:
    output = small_disk / "output"
    job_id = runs.start(str(output), max_train_steps=ENDLESS, checkpoint_step_interval=40, checkpoints_total_limit=2)
    runs.wait_for_checkpoint(job_id)
    use_up_files(small_disk, leave)
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
