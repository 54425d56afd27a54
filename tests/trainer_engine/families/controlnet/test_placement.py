"""ControlNets train the same on several ranks and with compiled blocks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch._dynamo import reset

from tests.helpers.models import tiny_model
from tests.helpers.tiny_run import HereRun, run_of_ranks
from tests.trainer_engine.families.controlnet.runs import controlled_datasets, controlled_run

WEIGHTS = "controlnet/diffusion_pytorch_model.safetensors"
QUIET: dict[str, Any] = {"max_train_steps": 3, "caption_dropout_probability": 0.0, "learning_rate": 1e-3, "lr_warmup_steps": 0}
REGIONAL = {"dynamo_use_regional_compilation": True}
EAGER = {"dynamo_backend": "eager"}
"""Traces as every backend does, and computes with the usual kernels."""


def weights(run: HereRun, file: str = WEIGHTS) -> dict[str, Tensor]:
    return load_file(run.output_dir / file)


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor], tolerance: float) -> None:
    assert found.keys() == wanted.keys() and not any("_orig_mod" in key for key in found)
    for key, tensor in wanted.items():
        torch.testing.assert_close(found[key], tensor, rtol=1e-3, atol=tolerance)


CASES = [(family, kind) for family in ("sd1x", "flux") for kind in ("complete", "regional")]


@pytest.mark.slow
@pytest.mark.parametrize(("family", "kind"), CASES)
def test_compiled_blocks_train_what_eager_ones_do(family: str, kind: str, tmp_path: Path) -> None:
    reset()
    wanted = controlled_run(tmp_path / "eager", family, **QUIET)
    compiled = {**EAGER, **(REGIONAL if kind == "regional" else {})}
    found = controlled_run(tmp_path / "compiled", family, **QUIET, **compiled)
    reset()
    assert_same(weights(found), weights(wanted), 1e-5)


@pytest.mark.slow
def test_an_adapter_on_compiled_blocks_trains_what_it_does_on_eager_ones(tmp_path: Path) -> None:
    reset()
    adapter = {"model_type": "lora", "lora_type": "standard", "lora_rank": 2}
    wanted = controlled_run(tmp_path / "eager", **QUIET, **adapter)
    found = controlled_run(tmp_path / "compiled", **QUIET, **adapter, **EAGER, **REGIONAL)
    reset()
    for file in (WEIGHTS, "pytorch_lora_weights.safetensors"):
        assert_same(weights(found, file), weights(wanted, file), 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["full", "lora"])
def test_two_ranks_train_what_one_does_with_twice_the_batch(kind: str, tmp_path: Path) -> None:
    adapter = {"model_type": "lora", "lora_type": "standard", "lora_rank": 2, "lora_dropout": 0.0} if kind == "lora" else {}
    alone = controlled_run(tmp_path / "alone", **QUIET, **adapter, train_batch_size=2)
    place = tmp_path / "shared"
    model = {"model_family": "sd1x", "model": str(tiny_model("sd1x")), "controlnet": True}
    run = run_of_ranks(place, datasets=controlled_datasets(place), **model, **QUIET, **adapter)
    for file in (WEIGHTS, "pytorch_lora_weights.safetensors") if adapter else (WEIGHTS,):
        assert_same(load_file(run.output_dir / file), weights(alone, file), 1e-5)
