"""``kill -9`` while steps go on and a checkpoint is written beside them: what has a name is whole, and nothing announced is lost."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

from tests.helpers.tiny_run import TinyRun, start_tiny_run
from trainer_engine.contract.checkpoint_files import list_checkpoints, newest_verified, step_of, verify

KILLS = int(os.environ.get("SIMPLETUNER_TEST_KILLS", "4"))
OPTIONS = {
    "max_train_steps": 1_000_000,
    "checkpoint_step_interval": 7,
    "checkpoints_total_limit": 2,
    "checkpointing_rolling_steps": 3,
    "checkpoints_rolling_total_limit": 1,
    "use_ema": True,
}
LONGEST_WAIT_SECONDS = 60


def wait_for_a_save(run: TinyRun) -> None:
    """Until a checkpoint lies half-written beside the whole ones."""
    deadline = time.monotonic() + LONGEST_WAIT_SECONDS
    while not list(run.output_dir.glob(".checkpoint-*.tmp-*")):
        assert run.process.poll() is None and time.monotonic() < deadline, run.log()


def test_killed_while_a_checkpoint_is_written_a_run_keeps_those_it_announced(tmp_path: Path) -> None:
    dice = random.Random(11)
    half_written, begins_at = 0, 0
    for _ in range(KILLS):
        run = start_tiny_run(tmp_path, f"run-{begins_at}", **OPTIONS)
        run.wait_for("training.checkpoint", count=dice.randint(1, 6))
        wait_for_a_save(run)
        time.sleep(dice.uniform(0, 0.02))
        run.process.kill()
        run.wait()
        half_written += bool(list(run.output_dir.glob(".checkpoint-*.tmp-*")))
        whole = list_checkpoints(run.output_dir)
        assert all(verify(info.path) == [] for info in whole)
        assert {info.name for info in whole} == {path.name for path in run.output_dir.glob("checkpoint-*")}
        announced = [Path(entry.extra["checkpoint"]["path"]).name for entry in run.of_type("training.checkpoint")]
        newest = newest_verified(run.output_dir)
        assert newest is not None and newest.step >= max(step_of(name) for name in announced)
        steps = [entry.data["step"] for entry in run.of_type("training.progress")]
        assert steps[0] == begins_at + 1, "it went on from the newest"
        assert steps[-1] - newest.step <= 2 * OPTIONS["checkpointing_rolling_steps"], "one save is written, the next waits for it"
        begins_at = newest.step
    assert half_written, "at least one was killed in the middle of a save"
