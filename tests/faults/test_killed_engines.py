"""``kill -9`` of the engine, at any moment of its life, costs at most the steps since the last checkpoint, and nothing of the result."""

from __future__ import annotations

import os
import random
import time

from tests.helpers.served_runs import ServedRuns
from trainer_engine.contract.checkpoint_files import MANIFEST, list_checkpoints, verify
from trainer_engine.contract.output_lock import LOCK_FILE

KILLS = int(os.environ.get("SIMPLETUNER_TEST_KILLS", "15"))
STEPS, INTERVAL = 1200, 5
SHAPE = {"max_train_steps": STEPS, "checkpoint_step_interval": INTERVAL, "checkpoints_total_limit": 3, "use_ema": True}
NOTICED_SECONDS = 20
MOMENTS = ("steps", "loading", "saving")


def result(runs: ServedRuns, output: str) -> dict[str, bytes]:
    """Every file of the last checkpoint and of the pipeline's denoiser, but the manifest, which holds the time."""
    folders = (runs.output(output) / f"checkpoint-{STEPS}", runs.output(output) / "pipeline/transformer")
    files = [path for folder in folders for path in sorted(folder.rglob("*")) if path.is_file() and path.name != MANIFEST]
    assert len(files) > 5
    return {str(path.relative_to(runs.output(output))): path.read_bytes() for path in files}


def wait_for(moment: str, runs: ServedRuns, job_id: str, dice: random.Random) -> None:
    """Somewhere between the process's first breath and its last."""
    runs.wait_for_engine(job_id)
    if moment == "loading":
        time.sleep(dice.uniform(0, 4))
    elif moment == "steps":
        runs.wait_for_step(job_id, 1)
        time.sleep(dice.uniform(0, 0.3))
    else:
        runs.wait_for_event(job_id, "training.checkpoint")
        deadline = time.monotonic() + 5
        while not list(runs.output("killed").glob(".checkpoint-*.tmp-*")) and time.monotonic() < deadline:
            pass  # until a checkpoint lies half-written beside the whole ones


def test_killed_again_and_again_a_run_ends_with_the_bytes_of_a_straight_one(runs: ServedRuns) -> None:
    straight = runs.start("straight", **SHAPE)
    assert runs.wait_for_end(straight)["status"] == "completed", runs.log(straight)
    dice = random.Random(20)
    ended = ""
    for number in range(KILLS):
        job_id = runs.start("killed", **SHAPE)
        wait_for(MOMENTS[number % len(MOMENTS)], runs, job_id, dice)
        runs.kill_engine(job_id)
        job = runs.wait_for_end(job_id, seconds=NOTICED_SECONDS)
        newest = runs.check_announced(job_id, "killed")
        runs.check_log(job_id)
        whole = list_checkpoints(runs.output("killed"))
        assert all(not verify(info.path) for info in whole), "a checkpoint that has its name is whole"
        ended = job["status"]
        if ended == "completed":
            break
        assert (ended, job["job_info"]["error_code"]) == ("error", "interrupted"), job
        assert job["job_info"]["checkpoint"] == (whole[0].name if whole else None)
        steps, first_resumed = runs.steps(job_id), whole[0].step if whole else 0
        assert not newest or int(newest.partition("-")[2]) <= first_resumed
        assert not steps or steps[-1] - first_resumed <= 2 * INTERVAL, "one save is written, and the next one that is due waits for it"
    if ended != "completed":
        last = runs.start("killed", **SHAPE)
        assert runs.wait_for_end(last)["status"] == "completed", runs.log(last)
    assert number >= min(KILLS, 8) - 1, "it was killed often enough"
    assert result(runs, "killed") == result(runs, "straight")
    left = [path.name for path in runs.output("killed").glob(".*") if path.name != LOCK_FILE]
    assert left == [], "half-written leftovers of killed saves are taken away"


def test_an_engine_that_is_stopped_by_the_system_and_killed_counts_as_killed(runs: ServedRuns) -> None:
    job_id = runs.start("frozen", max_train_steps=10_000, checkpoint_step_interval=20)
    runs.wait_for_checkpoint(job_id)
    (engine,) = runs.engine(job_id)
    engine.suspend()
    time.sleep(1)
    assert runs.status(job_id) == "running"
    engine.kill()
    job = runs.wait_for_status(job_id, "error", seconds=NOTICED_SECONDS)
    assert job["job_info"]["error_code"] == "interrupted"
    runs.check_announced(job_id, "frozen")
