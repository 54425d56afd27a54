"""Two processes train each family: a run that was stopped and goes on ends byte for byte as one that was never stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.helpers.models import tiny_model
from tests.helpers.resuming import assert_same_files
from tests.helpers.tiny_run import TinyRun, files_of, run_of_ranks, start_ranks
from trainer_engine.config.families import specs
from trainer_engine.contract.commands import Command
from trainer_engine.contract.errors import ExitCode

ADAPTER: dict[str, Any] = {"model_type": "lora", "lora_rank": 4, "lora_dropout": 0.1, "use_ema": True}
FULL: dict[str, Any] = {"model_type": "full", "gradient_checkpointing": True}
BESIDE_ONE_RANK = ("qwen_image", "qwen_image_21")
"""Families whose ``test_ranks.py`` trains them in full, and compares the result with that of one process as well."""
FLAVOURS = {"z_image": {"model_flavour": "base"}}
RUNS = {
    **{name: {"model_family": name, **ADAPTER} for name in specs()},
    **{f"{name} in full": {"model_family": name, **FULL} for name in specs() if name not in BESIDE_ONE_RANK},
}


def options_of(name: str) -> dict[str, Any]:
    family = RUNS[name]["model_family"]
    return {**RUNS[name], **FLAVOURS.get(family, {}), "model": str(tiny_model(family)), "gradient_accumulation_steps": 2}


def steps_of(run: TinyRun) -> list[int]:
    return [entry.data["step"] for entry in run.of_type("training.progress")]


def assert_two_ranks_resume_exactly(place: Path, **options: Any) -> None:
    """Stop a run of two processes after some steps, let it go on for two more, and train as many steps in one go."""
    again = {"output_dir": str(place / "resumed"), "checkpoint_step_interval": 100_000, **options}
    stopped = start_ranks(place, "stopped", max_train_steps=100_000, **again)
    stopped.wait_for("training.progress", count=2)
    stopped.request(Command.STOP)
    assert stopped.wait() == ExitCode.STOPPED, stopped.log()
    after = steps_of(stopped)[-1]
    assert stopped.newest_checkpoint().step == after
    resumed = run_of_ranks(place, "resumed-run", max_train_steps=after + 2, **again)
    assert steps_of(resumed) == [after + 1, after + 2]
    straight = run_of_ranks(place, "straight-run", max_train_steps=after + 2, **{**again, "output_dir": str(place / "straight")})
    assert len(steps_of(straight)) == after + 2
    assert_same_files(*(files_of(run.newest_checkpoint().path) for run in (straight, resumed)))


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_a_stopped_run_of_two_ranks_ends_as_the_straight_one(name: str, tmp_path: Path) -> None:
    assert_two_ranks_resume_exactly(tmp_path, **options_of(name))
