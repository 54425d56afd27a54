"""What the table of number types states is true of torch and optimum-quanto, and a device refuses what it cannot compute."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from optimum.quanto import qtypes
from torch import Tensor, nn

from tests.helpers.models import options_with
from tests.helpers.params import compiled_slow
from trainer_engine.config.options import REGISTRY
from trainer_engine.config.parse import check_options
from trainer_engine.config.precisions import LOADED, PRECISIONS, QUANTISED, activated, available_on
from trainer_engine.config.rules.device import device_problems
from trainer_engine.weights.quantization import quantiser


def stored_bytes(tensor: Tensor) -> int:
    """Bytes of a tensor and, for a quantised one, of its scales and shifts."""
    if not hasattr(tensor, "__tensor_flatten__"):
        return tensor.nbytes
    names, _ = tensor.__tensor_flatten__()
    return sum(stored_bytes(getattr(tensor, name)) for name in names)


@pytest.mark.parametrize(
    ("family", "precision", "warned"), [("z_image", "fp16", True), ("z_image", "bf16", False), ("flux", "fp16", False)]
)
def test_a_precision_in_which_a_family_learns_nothing_is_a_warning(family: str, precision: str, *, warned: bool) -> None:
    _, problems = check_options({"model_family": family, "model_type": "lora", "mixed_precision": precision})
    assert (("mixed_precision", "poor_for_family") in {(problem.option, problem.code) for problem in problems}) is warned


def test_the_options_offer_every_row_of_the_table() -> None:
    assert REGISTRY["base_model_precision"].choices == ("no_change", *PRECISIONS)
    assert REGISTRY["text_encoder_1_precision"].choices == ("no_change", *QUANTISED)
    assert set(REGISTRY["vae_dtype"].choices) == {*LOADED, "default"}
    assert set(REGISTRY["mixed_precision"].choices) <= {*PRECISIONS, "no"}


@pytest.mark.parametrize("name", LOADED)
def test_torch_stores_as_many_bytes_as_the_table_states(name: str) -> None:
    assert getattr(torch, PRECISIONS[name].library_name).itemsize == PRECISIONS[name].weight_bytes


@pytest.mark.parametrize("name", compiled_slow(available_on("cpu")))
def test_a_quantised_layer_stores_as_many_bytes_as_the_table_states(name: str) -> None:
    network = nn.Sequential(nn.Linear(512, 512, bias=False)).to(torch.bfloat16)
    assert quantiser(name, options_with(), torch.device("cpu")).apply(network) == []
    held = [network[0].weight] if PRECISIONS[name].library == "quanto" else list(network[0].buffers())
    assert sum(map(stored_bytes, held)) / 512**2 == pytest.approx(PRECISIONS[name].weight_bytes, rel=0.02)


def test_quanto_and_torchao_have_the_types_that_the_table_names() -> None:
    from torchao import quantization

    for row in PRECISIONS.values():
        assert row.library != "quanto" or row.library_name in qtypes
        assert row.library != "torchao" or hasattr(quantization, row.library_name)


def test_types_that_round_inputs_are_rows_of_the_table() -> None:
    named = {row.with_activations for row in PRECISIONS.values() if row.with_activations}
    assert named <= set(PRECISIONS) and all(PRECISIONS[name].with_activations == name for name in named)
    assert activated("int8-torchao", quantize_activations=True) == "int8dq-torchao"
    assert activated("int8-torchao", quantize_activations=False) == "int8-torchao"
    assert activated("no_change", quantize_activations=True) == "no_change"


def codes(device: str, capability: tuple[int, int] | None = None, **values: Any) -> set[tuple[str, str]]:
    return {(problem.option, problem.code) for problem in device_problems(options_with(**values), device, capability)}


def test_float16_arithmetic_needs_a_gpu() -> None:
    assert codes("cpu", mixed_precision="fp16") == codes("mps", mixed_precision="fp16") == {("mixed_precision", "needs_gpu")}
    assert codes("cuda", mixed_precision="fp16") == codes("cpu", mixed_precision="bf16") == set()


ADAPTER = {"model_family": "flux", "model_type": "lora"}
REFUSED = {("base_model_precision", "lacked_by_device")}


@pytest.mark.parametrize("name", ["int4-torchao", "fp8-torchao"])
def test_types_with_kernels_for_gpus_alone_are_refused_on_other_devices(name: str) -> None:
    chosen = {**ADAPTER, "base_model_precision": name}
    assert codes("cpu", **chosen) == codes("mps", **chosen) == REFUSED
    assert codes("cuda", **chosen) == codes("cuda", (9, 0), **chosen) == set()
    assert codes("cuda", (7, 5), **chosen) == {("base_model_precision", "gpu_too_old")}


def test_the_refusal_of_a_device_names_the_reason_and_types_that_it_can_hold() -> None:
    options = options_with(**ADAPTER, base_model_precision="fp8wo-torchao", quantize_activations=True)
    (problem,) = device_problems(options, "cuda", (8, 0))
    assert "compute capability 8.0" in problem.message and "8.9" in problem.message
    assert "fp8wo-torchao" in str(problem.expected) and " fp8-torchao" not in str(problem.expected)
    (problem,) = device_problems(options, "cpu")
    assert "8-bit floating-point products" in problem.message and "int8-torchao" in str(problem.expected)
