"""Control images on several processes: what two of them train together is what one trains, and they resume byte for byte."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests.helpers.models import tiny_model
from tests.helpers.resuming import assert_same_files
from tests.helpers.tiny_run import TinyRun, files_of, run_of_ranks, train_here
from tests.trainer_engine.families.controlnet.runs import controlled_datasets
from trainer_engine.contract.events import ProgressEvent

STEPS = 4
LAYER = "x_embedder.weight"
SHARED = {"one sample by two": {"train_batch_size": 2, "context_parallel_size": 2}, "a sample each": {"train_batch_size": 1}}


def options_of(place: Path, name: str, **more: Any) -> dict[str, Any]:
    return {
        "model_family": "flux",
        "model_flavour": "dev",
        "model": str(tiny_model("flux", flavour="dev")),
        "control": True,
        "max_train_steps": STEPS,
        "checkpoint_step_interval": 2,
        "learning_rate": 1e-2,
        "datasets": controlled_datasets(place),
        "output_dir": str(place / name),
        **more,
    }


def weights(run: TinyRun) -> dict[str, Any]:
    return load_file(run.output_dir / f"checkpoint-{STEPS}" / "transformer" / "diffusion_pytorch_model.safetensors")


def losses(run: TinyRun) -> list[float]:
    return [entry.data["loss"] for entry in run.of_type("training.progress")]


@pytest.mark.slow
@pytest.mark.parametrize("how", SHARED)
def test_two_processes_train_what_one_does_and_resume_byte_for_byte(how: str, tmp_path: Path) -> None:
    alone = train_here(tmp_path, **options_of(tmp_path, "alone", train_batch_size=2))
    together = run_of_ranks(tmp_path, "run-together", **options_of(tmp_path, "together", **SHARED[how]))
    assert losses(together) == pytest.approx([event.loss for event in alone.heard.of(ProgressEvent)], rel=1e-5)
    assert weights(together)[LAYER].shape[1] == 128 and weights(together)[LAYER][:, 64:].any()
    shutil.copytree(together.output_dir / "checkpoint-2", tmp_path / "resumed" / "checkpoint-2")
    more = {**SHARED[how], "resume_from_checkpoint": "latest"}
    resumed = run_of_ranks(tmp_path, "run-resumed", **options_of(tmp_path, "resumed", **more))
    assert losses(resumed) == losses(together)[2:]
    assert_same_files(*(files_of(run.output_dir / f"checkpoint-{STEPS}") for run in (together, resumed)))
