"""Two processes train each family: a run that was stopped and goes on ends byte for byte as one that was never stopped."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.helpers.models import tiny_model
from tests.helpers.resuming import assert_same_files
from tests.helpers.tiny_run import TinyRun, files_of, run_of_ranks, start_ranks, tiny_datasets
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
REFERENCED = {
    name: spec.default_flavour if spec.default_flavour in spec.takes_references else min(spec.takes_references)
    for name, spec in specs().items()
    if spec.takes_references
}
"""Family -> a flavour that takes references, the default one if it does."""


def options_of(name: str) -> dict[str, Any]:
    family = RUNS[name]["model_family"]
    return {**RUNS[name], **FLAVOURS.get(family, {}), "model": str(tiny_model(family)), "gradient_accumulation_steps": 2}


def with_references(place: Path) -> list[dict[str, Any]]:
    """Images of two sizes, each with a reference of its size."""
    pictures, texts = tiny_datasets(place, conditioning_data=["before"])
    before = {**pictures, "id": "before", "conditioning_type": "reference_strict", "cache_dir_vae": str(place / "cache/before")}
    before["instance_data_dir"] = shutil.copytree(pictures["instance_data_dir"], place / "before", copy_function=darkened)
    return [pictures, {name: value for name, value in before.items() if name != "conditioning_data"}, texts]


def darkened(source: str, target: str) -> str:
    """Write a darker copy of an image."""
    with Image.open(source) as image:
        image.convert("RGB").point(lambda value: value // 2).save(target)
    return target


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


@pytest.mark.slow
@pytest.mark.parametrize("kind", [ADAPTER, FULL], ids=["adapter", "full"])
@pytest.mark.parametrize("name", REFERENCED)
def test_a_stopped_run_of_two_ranks_with_references_ends_as_the_straight_one(name: str, kind: dict[str, Any], tmp_path: Path) -> None:
    flavour = REFERENCED[name]
    model = tiny_model(name) if flavour == specs()[name].default_flavour else tiny_model(name, flavour=flavour)
    usual = {"model_family": name, "model_flavour": flavour, "model": str(model), "datasets": with_references(tmp_path)}
    assert_two_ranks_resume_exactly(tmp_path, **kind, **usual, train_batch_size=2)
