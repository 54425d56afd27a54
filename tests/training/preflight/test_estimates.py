"""The memory estimate counts what the chosen optimizer and adapter keep, so that no run that fits is refused."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from environments.paths import Home
from environments.resolve.run import resolve_run
from tests.helpers.checked_runs import memory_of_training
from tests.helpers.models import options_with, tiny_model
from tests.training.conftest import Training, write_model
from trainer_engine.config.families import specs
from trainer_engine.config.optimizers import OPTIMIZERS
from trainer_engine.datasets.buckets import Effective
from trainer_engine.datasets.report import DatasetReport
from training.preflight.estimates import Memory, estimate_disk, estimate_memory
from training.preflight.network import count_parameters, network_tensors
from training.preflight.run import examine_run

EDGE = 10_000
WEIGHT = {"weight": (EDGE, EDGE)}
NUMBERS = EDGE * EDGE
NOTHING = DatasetReport([], Effective(1, 1, 1))


def counted(optimizer: str, tensors: dict[str, tuple[int, ...]] | None = WEIGHT, **values: Any) -> float:
    """Bytes that the estimate counts for each number of the network."""
    options = options_with(optimizer=optimizer, **values)
    return estimate_memory(options, NUMBERS, NOTHING, specs()["pixart_sigma"], tensors).counted / NUMBERS


@pytest.mark.parametrize(
    ("optimizer", "values", "state"),
    [
        ("torch-adamw", {}, 8),
        ("torch-adamw", {"optimizer_config": "amsgrad=true"}, 12),
        ("adamw_bf16", {}, 8),
        ("torch-sgd", {}, 0),
        ("torch-sgd", {"optimizer_config": "momentum=0.9"}, 4),
        ("optimi-lion", {}, 4),
        ("torch-adafactor", {}, 8 / EDGE),
        ("prodigy", {}, 16),
        ("adamw_schedulefree", {}, 8),
    ],
)
def test_each_optimizer_counts_the_state_it_keeps(optimizer: str, values: dict[str, Any], state: float) -> None:
    weights_and_gradients = 8
    assert counted(optimizer, **values) == pytest.approx(weights_and_gradients + state)
    assert counted(optimizer, tensors=None, **values) == pytest.approx(weights_and_gradients + state, abs=0.01)


def test_bfloat16_weights_count_half_and_their_compensation() -> None:
    assert counted("adamw_bf16", mixed_precision="bf16") == pytest.approx(2 + 2 + 3 * 2)
    assert counted("torch-adamw", mixed_precision="bf16") == pytest.approx(4 + 4 + 2 * 4)


def memory_problems(training: Training, gpu_mib: int, optimizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Codes of the problems on a machine whose ``nvidia-smi`` reports one GPU of this size."""
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\necho {gpu_mib}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    home = Home(training.home)
    form = {name: value for name, value in training.form.items() if not name.startswith("__")}
    form |= {"--pretrained_model_name_or_path": "large", "--optimizer": optimizer}
    report = examine_run(resolve_run(home, {}, form), home, {"CUDA_VISIBLE_DEVICES": "0"})
    return {problem.code for problem in report.problems if problem.option == "train_batch_size"}


@pytest.mark.parametrize(
    ("optimizer", "is_refused"),
    [
        ("torch-adamw", True),
        ("optimi-lion", True),
        ("torch-sgd", False),
        ("torch-adafactor", False),
        ("prodigy", True),
    ],
)
def test_validate_refuses_only_optimizers_whose_state_does_not_fit(
    training: Training, optimizer: str, is_refused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_model(training.home / "large")
    header = f'{{"w": {{"dtype": "F32", "shape": [{EDGE}, {EDGE}], "data_offsets": [0, 0]}}}}'.encode()
    weights = training.home / "large" / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(len(header).to_bytes(8, "little") + header)
    codes = memory_problems(training, 8 * NUMBERS // 1024**2 + 100, optimizer, tmp_path, monkeypatch)
    assert ("memory_too_small" in codes) == is_refused


def test_state_that_is_paged_out_is_no_memory_of_the_gpu_but_is_saved() -> None:
    options = options_with(optimizer="torch-adamw")
    paged = options.model_copy(update={"optimizer": options.optimizer.model_copy(update={"optimizer": "bnb-adamw-paged"})})
    spec = specs()["pixart_sigma"]
    memory, disk = (
        [estimate_memory(one, NUMBERS, NOTHING, spec, WEIGHT).counted / NUMBERS for one in (options, paged)],
        [estimate_disk(one, NUMBERS, spec, WEIGHT, steps=1, encoder_bytes=0)["checkpoint"] / NUMBERS for one in (options, paged)],
    )
    assert memory == [16, 8] and disk == [12, 12]


def test_eight_bit_state_counts_a_byte_and_its_scales() -> None:
    row = OPTIMIZERS["bnb-adamw8bit"]
    assert row.state_bytes((256, 256), 4, {}) == 2 * (256 * 256 + 4 * 256)
    assert row.state_bytes((16, 16), 4, {}) == 2 * 4 * 256
    assert row.state_bytes((16, 16), 4, {"min_8bit_size": 1}) == 2 * (256 + 4)


def test_an_adapter_counts_the_layers_that_it_is_put_on() -> None:
    spec, model = specs()["flux"], str(tiny_model("flux"))
    adapter = {"model_type": "lora", "lora_rank": 2, "flux_lora_target": "mmdit"}
    options = options_with(model_family="flux", pretrained_model_name_or_path=model, optimizer="torch-sgd", **adapter)
    tensors = network_tensors(options.model, spec, Path("no-cache"))
    assert tensors
    parameters = count_parameters(tensors)
    estimate = estimate_memory(options, parameters, NOTHING, spec, tensors)
    layers = [shape for name, shape in tensors.items() if name.endswith(("to_q.weight", "to_k.weight", "to_v.weight", "to_out.0.weight"))]
    assert layers
    assert estimate.counted >= 4 * parameters + 8 * sum(2 * sum(shape) for shape in layers)


def test_the_error_bar_covers_the_modelled_part_alone_below() -> None:
    memory = Memory(counted=100, modelled=100)
    assert memory.low == 165 and memory.high == 270


def test_a_network_of_convolutions_counts_the_latents_that_they_see(training: Training) -> None:
    header = b'{"down_blocks.0.resnets.0.conv1.weight": {"dtype": "F32", "shape": [64, 64, 3, 3], "data_offsets": [0, 0]}}'
    folder = write_model(training.home / "unet") / "transformer"
    (folder / "diffusion_pytorch_model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    home = Home(training.home)
    form = {name: value for name, value in training.form.items() if not name.startswith("__")}
    form |= {"--pretrained_model_name_or_path": "unet", "--optimizer": "torch-sgd", "--gradient_checkpointing": "false"}
    understood = examine_run(resolve_run(home, {}, form), home, {"CUDA_VISIBLE_DEVICES": ""}).understood
    pixels = max(bucket["width"] * bucket["height"] for one in understood["datasets"] for bucket in one["buckets"])
    kept = 3 * 64 * (pixels // 64) * understood["batch_size"]
    weights = 4 * 64 * 64 * 9
    assert memory_of_training(understood)["bytes"] == 2 * weights + 4 * kept // 8, "gradients take the room of activations that are freed"
