"""What the table of number types states is true of torch and optimum-quanto, and a device refuses what it cannot compute."""

from __future__ import annotations

import pytest
import torch
from optimum.quanto import qtypes
from torch import Tensor, nn

from tests.helpers.models import options_with
from trainer_engine.config.options import REGISTRY
from trainer_engine.config.precisions import LOADED, PRECISIONS, QUANTISED
from trainer_engine.config.rules.device import device_problems
from trainer_engine.weights.quantization import Quantiser


def stored_bytes(tensor: Tensor) -> int:
    """Bytes of a tensor and, for a quantised one, of its scales and shifts."""
    if not hasattr(tensor, "__tensor_flatten__"):
        return tensor.nbytes
    names, _ = tensor.__tensor_flatten__()
    return sum(stored_bytes(getattr(tensor, name)) for name in names)


def test_the_options_offer_every_row_of_the_table() -> None:
    assert REGISTRY["base_model_precision"].choices == ("no_change", *PRECISIONS)
    assert REGISTRY["text_encoder_1_precision"].choices == ("no_change", *QUANTISED)
    assert set(REGISTRY["vae_dtype"].choices) == {*LOADED, "default"}
    assert set(REGISTRY["mixed_precision"].choices) <= {*PRECISIONS, "no"}


@pytest.mark.parametrize("name", LOADED)
def test_torch_stores_as_many_bytes_as_the_table_states(name: str) -> None:
    assert getattr(torch, PRECISIONS[name].library_name).itemsize == PRECISIONS[name].weight_bytes


@pytest.mark.parametrize("name", QUANTISED)
def test_quanto_stores_as_many_bytes_as_the_table_states(name: str) -> None:
    assert PRECISIONS[name].library_name in qtypes
    network = nn.Sequential(nn.Linear(512, 512, bias=False)).to(torch.bfloat16)
    Quantiser(name, torch.device("cpu")).apply(network)
    weight = network[0].weight
    assert isinstance(weight, Tensor)
    assert stored_bytes(weight) / 512**2 == pytest.approx(PRECISIONS[name].weight_bytes, rel=0.02)


def codes(device: str, **values: str) -> set[tuple[str, str]]:
    return {(problem.option, problem.code) for problem in device_problems(options_with(**values), device)}


def test_float16_arithmetic_needs_a_gpu() -> None:
    assert codes("cpu", mixed_precision="fp16") == codes("mps", mixed_precision="fp16") == {("mixed_precision", "needs_gpu")}
    assert codes("cuda", mixed_precision="fp16") == codes("cpu", mixed_precision="bf16") == set()
