"""A layer quantised by any library computes nearly what it computed before, and passes on the gradients of its rounded weights."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from tests.helpers.models import options_with
from trainer_engine.config.precisions import PRECISIONS, available_on
from trainer_engine.weights.quantised.layer import QuantisedLinear
from trainer_engine.weights.quantization import quantiser

CPU = torch.device("cpu")
OURS = [name for name in available_on("cpu") if PRECISIONS[name].library != "quanto"]
"""Types whose layers are ``QuantisedLinear``."""
ERRORS = {
    "int8-torchao": 0.008,
    "int8dq-torchao": 0.012,
    "int8dq-int4-torchao": 0.11,
    "fp8wo-torchao": 0.03,
    "nf4-bnb": 0.11,
    "fp8-native": 0.03,
    "int8-sdnq": 0.01,
    "uint8-sdnq": 0.01,
    "int16-sdnq": 1e-4,
    "uint16-sdnq": 1e-4,
    "fp16-sdnq": 5e-4,
    "fp8-sdnq": 0.03,
    "int6-sdnq": 0.035,
    "int5-sdnq": 0.065,
    "uint5-sdnq": 0.06,
    "uint4-sdnq": 0.11,
    "uint3-sdnq": 0.2,
    "uint2-sdnq": 0.4,
}
"""Type -> largest error of a layer's output against float32 weights, as a share of its size, for weights of a normal distribution."""


def layer(inputs: int = 64, outputs: int = 48, *, bias: bool = True) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = nn.Linear(inputs, outputs, bias=bias)
        nn.init.normal_(made.weight, std=0.1)
    return nn.Sequential(made)


def batch(inputs: int = 64) -> Tensor:
    return torch.randn(3, 5, inputs, generator=torch.Generator().manual_seed(1))


def quantise(network: nn.Module, name: str, **values: Any) -> nn.Module:
    assert quantiser(name, options_with(**values), CPU).apply(network) == []
    return network


def test_every_type_of_this_processor_has_a_stated_error() -> None:
    assert set(ERRORS) == set(OURS)


@pytest.mark.parametrize("name", OURS)
def test_outputs_are_within_the_stated_error_of_float32(name: str) -> None:
    network, x = layer(), batch()
    with torch.no_grad():
        wanted = network(x)
        found = quantise(network, name)(x)
    error = float((found - wanted).norm() / wanted.norm())
    assert ERRORS[name] / 20 < error < ERRORS[name]


@pytest.mark.parametrize("name", OURS)
def test_the_gradient_of_the_input_is_that_of_the_rounded_weights(name: str) -> None:
    quantised = quantise(layer(), name)[0]
    ours, theirs = batch().requires_grad_(), batch().requires_grad_()
    factor = torch.randn(3, 5, 48, generator=torch.Generator().manual_seed(2))
    (quantised(ours) * factor).sum().backward()
    (linear(theirs, quantised.dequantised(torch.float32), quantised.bias) * factor).sum().backward()
    assert ours.grad is not None and theirs.grad is not None
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", OURS)
def test_a_layer_is_a_frozen_linear_layer_for_adapters(name: str) -> None:
    quantised = quantise(layer(), name)[0]
    assert isinstance(quantised, nn.Linear) and isinstance(quantised, QuantisedLinear)
    assert (quantised.in_features, quantised.out_features) == (64, 48)
    assert quantised.weight.shape == (48, 64) and quantised.weight.dtype == torch.float32
    assert not any(parameter.requires_grad for parameter in quantised.parameters())
    assert [key for key, _ in quantised.named_parameters()] == ["bias"] and list(quantised.state_dict()) == ["bias"]


@pytest.mark.parametrize("name", OURS)
def test_a_step_keeps_neither_weights_nor_inputs_for_its_backward_pass(name: str) -> None:
    quantised = quantise(layer(), name)[0]
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        quantised(batch().requires_grad_())
    assert kept == []


@pytest.mark.parametrize("name", OURS)
def test_a_copy_of_a_layer_computes_the_same(name: str) -> None:
    quantised = quantise(layer(), name)[0]
    other = copy.deepcopy(quantised).to(CPU)
    assert torch.equal(other(batch()), quantised(batch()))
    assert {key: tensor.dtype for key, tensor in other.named_buffers()} == {key: tensor.dtype for key, tensor in quantised.named_buffers()}


@pytest.mark.parametrize("name", ["int8-torchao", "int8dq-torchao", "nf4-bnb", "fp8-native", "uint4-sdnq"])
def test_a_layer_of_float32_computes_in_the_type_of_an_autocast(name: str) -> None:
    network, x = quantise(layer(), name), batch()
    with torch.no_grad():
        wanted = network(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = network(x)
    assert found.dtype == torch.bfloat16
    assert float((found.float() - wanted).norm() / wanted.norm()) < 0.02


def test_convolutions_stay_as_they_are_with_libraries_of_linear_layers() -> None:
    network = nn.Sequential(nn.Conv2d(4, 4, 3), nn.Linear(32, 32))
    quantise(network, "int8-torchao")
    assert type(network[0]) is nn.Conv2d and isinstance(network[1], QuantisedLinear)


def test_a_shape_that_a_library_refuses_keeps_its_weights_and_is_named() -> None:
    network = nn.Sequential(*layer(24, 16), *layer(64, 16))
    before = network[0].weight.detach().clone()
    (exact,) = quantiser("int8dq-int4-torchao", options_with(), CPU).apply(network)
    assert type(network[0]) is nn.Linear and torch.equal(network[0].weight, before)
    assert isinstance(network[1], QuantisedLinear)
    assert exact.shape == "Linear 24 -> 16 with bias in float32" and "divisible" in exact.fault


def test_4_bit_numbers_of_bitsandbytes_are_the_ones_of_its_own_functions() -> None:
    from bitsandbytes import functional

    network = layer()
    packed, state = functional.quantize_4bit(network[0].weight.detach(), blocksize=64, quant_type="nf4")
    wanted = functional.dequantize_4bit(packed, state)
    assert torch.equal(quantise(network, "nf4-bnb")[0].weight, wanted)


@pytest.mark.parametrize(("name", "config"), [("int8-torchao", "Int8WeightOnlyConfig"), ("fp8wo-torchao", "Float8WeightOnlyConfig")])
def test_outputs_of_torchao_are_the_ones_of_its_own_layer(name: str, config: str) -> None:
    from torchao import quantization

    theirs = layer()
    quantization.quantize_(theirs, getattr(quantization, config)())
    with torch.no_grad():
        torch.testing.assert_close(quantise(layer(), name)(batch()), theirs(batch()), rtol=1e-6, atol=1e-6)


def test_8_bit_floats_lose_at_most_half_a_step_of_their_row() -> None:
    network = layer()
    weight = network[0].weight.detach().clone()
    rounded = quantise(network, "fp8-native")[0].weight
    largest = weight.abs().amax(dim=1, keepdim=True)
    assert torch.all((rounded - weight).abs() <= torch.maximum(weight.abs() / 16, largest / 448 / 2**9) * 1.001)
