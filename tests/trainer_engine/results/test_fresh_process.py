"""Results of runs in a process that never saw this project: diffusers generates with them what the run showed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.helpers.fresh_process import Result, generate_without_project, run_without_project
from tests.helpers.models import tiny_model
from tests.helpers.tiny_run import HereRun, train_here

pytestmark = pytest.mark.slow
PIPELINES = {"sd1x": "StableDiffusionPipeline", "sdxl": "StableDiffusionXLPipeline", "wan": "WanPipeline"}
KINDS = ("full", "lora")
SEED = 3
SHOWN: dict[str, Any] = {
    "validation_disable": False,
    "validation_prompt": "a red circle",
    "validation_negative_prompt": "blue",
    "validation_disable_unconditional": True,
    "validation_resolution": "96x64",
    "validation_num_inference_steps": 3,
    "validation_guidance": 4.0,
    "validation_guidance_rescale": 0.0,
    "validation_seed": SEED,
    "inference_scheduler_timestep_spacing": "leading",
    "learning_rate": 0.02,
    "max_train_steps": 2,
}
ARGUMENTS: dict[str, object] = {
    "prompt": "a red circle",
    "negative_prompt": "blue",
    "width": 96,
    "height": 64,
    "num_inference_steps": 3,
    "guidance_scale": 4.0,
}


def trained(place: Path, family: str, kind: str) -> HereRun:
    adapter = {"lora_rank": 4, "lora_alpha": 4, "lora_dropout": 0.1} if kind == "lora" else {}
    run = train_here(place, model_family=family, model=str(tiny_model(family)), model_type=kind, **adapter, **SHOWN)
    assert run.code == 0
    return run


def result_of(run: HereRun, place: Path, family: str, kind: str) -> Result:
    is_full = kind == "full"
    return Result(
        pipeline=PIPELINES[family],
        folder=str(run.output_dir / "pipeline") if is_full else str(tiny_model(family)),
        adapter="" if is_full else str(run.output_dir),
        arguments={**ARGUMENTS, **({"num_frames": 1} if family == "wan" else {})},
        seed=SEED,
        image=str(place / f"{family}-{kind}.png"),
    )


def levels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"), dtype=int)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("results")


@pytest.fixture(scope="module")
def runs(place: Path) -> dict[tuple[str, str], HereRun]:
    """A run of each family and kind, and the images of one process that generated with all of their results."""
    made = {(family, kind): trained(place / f"{family}-{kind}", family, kind) for family in PIPELINES for kind in KINDS}
    generate_without_project([result_of(run, place, family, kind) for (family, kind), run in made.items()], place)
    return made


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", PIPELINES)
def test_diffusers_alone_generates_the_image_that_the_run_showed(
    runs: dict[tuple[str, str], HereRun], place: Path, family: str, kind: str
) -> None:
    folder = runs[family, kind].output_dir / "validation_images"
    before, after = (levels(folder / f"step_{step}_validation_0_96x64.png") for step in (0, 2))
    there = levels(place / f"{family}-{kind}.png")
    assert np.abs(there - after).max() <= 1
    assert np.abs(there - before).max() > 3, "the run changed nothing that an image shows"


def test_such_a_process_cannot_import_this_project(tmp_path: Path) -> None:
    program = """
try:
    import trainer_engine
except ModuleNotFoundError:
    print("it is not there")
"""
    assert run_without_project(program, place=tmp_path) == "it is not there\n"
    with pytest.raises(AssertionError, match="No module named 'tests'"):
        run_without_project("import tests", place=tmp_path)
