"""LoKr layers with fewer operators: the same numbers as the library's, and where the library is left to itself."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from lycoris.modules.lokr import LokrModule
from torch import Tensor, nn

from tests.bench.host import OperatorCount
from trainer_engine.adapters.fused_lokr import fuse

Outcome = tuple[Tensor, list[Tensor]]
"""The output of a layer, and the gradients of the adapter and of the input."""


@dataclass
class Layer:
    """An adapted layer with random factors."""

    layer: nn.Module
    lora: LokrModule
    inputs: Tensor

    def step(self, autocast: bool = False) -> Outcome:
        trained = [parameter for parameter in self.lora.parameters() if parameter.requires_grad]
        inputs = self.inputs.detach().requires_grad_(True)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            output = self.layer(inputs)
        found = torch.autograd.grad(output.float().square().sum(), [*trained, inputs])
        return output.detach(), [*found]


def make_layer(layer: nn.Module, inputs: Tensor, *, fused: bool, **options: Any) -> Layer:
    lora = LokrModule("layer", layer.requires_grad_(False), options.pop("multiplier", 1.0), 10000, 1, factor=4, full_matrix=True, **options)
    dice = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in lora.parameters():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=dice))
    if fused:
        fuse(lora)
    lora.apply_to()
    return Layer(layer, lora, inputs)


def linear(dtype: torch.dtype = torch.float32) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return nn.Linear(32, 64).to(dtype), torch.randn(2, 7, 32).to(dtype)


def both(**options: Any) -> tuple[Layer, Layer]:
    """The layer as it is fused, and as the library computes it."""
    dtype = options.pop("dtype", torch.float32)
    layer, inputs = linear(dtype)
    return make_layer(copy.deepcopy(layer), inputs, fused=True, **options), make_layer(layer, inputs, fused=False, **options)


def relative(found: Tensor, expected: Tensor) -> float:
    difference = found.detach().double() - expected.detach().double()
    return float(difference.norm() / expected.detach().double().norm())


@pytest.mark.parametrize("options", [{}, {"multiplier": 0.7}, {"weight_decompose": True}, {"weight_decompose": True, "multiplier": 0.7}])
def test_one_product_gives_the_output_and_the_gradients_of_two(options: dict[str, Any]) -> None:
    (output, gradients), (expected, others) = (layer.step() for layer in both(bypass_mode=False, **options))
    assert relative(output, expected) < 1e-6
    assert all(relative(mine, other) < 1e-6 for mine, other in zip(gradients, others, strict=True))


@pytest.mark.parametrize("options", [{}, {"multiplier": 0.7}, {"dtype": torch.bfloat16}])
def test_what_bypass_adds_has_the_same_bits(options: dict[str, Any]) -> None:
    autocast = "dtype" in options
    (output, gradients), (expected, others) = (layer.step(autocast) for layer in both(bypass_mode=True, **options))
    assert torch.equal(output, expected)
    assert all(torch.equal(mine, other) for mine, other in zip(gradients, others, strict=True))


def test_one_product_in_bfloat16_is_no_further_from_the_exact_result() -> None:
    fused, library = both(bypass_mode=False, dtype=torch.bfloat16)
    layer, _ = linear()
    weight = fused.layer.weight.double() + fused.lora.get_weight(fused.lora.shape).double()
    exact = nn.functional.linear(fused.inputs.double(), weight, layer.bias.bfloat16().double())
    assert relative(fused.step(autocast=True)[0], exact) <= relative(library.step(autocast=True)[0], exact)


def test_a_float32_weight_under_autocast_is_left_to_the_library() -> None:
    fused, library = both(bypass_mode=False)
    (output, gradients), (expected, others) = (layer.step(autocast=True) for layer in (fused, library))
    assert torch.equal(output, expected)
    assert all(torch.equal(mine, other) for mine, other in zip(gradients, others, strict=True))


@pytest.mark.parametrize("rank_dropout", [0.0, 0.5])
def test_dropout_of_ranks_is_that_of_the_library(rank_dropout: float) -> None:
    results = []
    for layer in both(bypass_mode=False, rank_dropout=rank_dropout):
        torch.manual_seed(5)
        results.append(layer.step())
    assert relative(results[0][0], results[1][0]) < 1e-6


@pytest.mark.parametrize(("bypass", "fewer"), [(True, 2), (False, 10)])
def test_a_step_takes_fewer_operators(bypass: bool, fewer: int) -> None:
    counts = []
    for layer in both(bypass_mode=bypass):
        with OperatorCount() as counter:
            layer.step()
        counts.append(counter.operators)
    assert counts[0] <= counts[1] - fewer


def test_convolutions_are_fused_as_well() -> None:
    torch.manual_seed(0)
    layer, inputs = nn.Conv2d(8, 16, 3, stride=2, padding=1), torch.randn(2, 8, 9, 9)
    fused = make_layer(copy.deepcopy(layer), inputs, fused=True, bypass_mode=False).step()
    expected = make_layer(layer, inputs, fused=False, bypass_mode=False).step()
    assert relative(fused[0], expected[0]) < 1e-6
    assert all(relative(mine, other) < 1e-6 for mine, other in zip(fused[1], expected[1], strict=True))


class OtherLinear(nn.Linear):
    """A layer that computes something else from its weight."""

    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


def test_layers_of_another_kind_and_trained_scalars_are_left_to_the_library() -> None:
    layer, inputs = linear()
    wrapped = nn.Linear(32, 64)
    wrapped.forward = lambda input: 3 * nn.Linear.forward(wrapped, input)  # type: ignore[method-assign]
    for odd, options in ((OtherLinear(32, 64), {}), (wrapped, {}), (layer, {"use_scalar": True})):
        made = make_layer(odd, inputs, fused=True, bypass_mode=False, **options)
        assert "_rebuild_forward" not in vars(made.lora)
        assert made.step()[0].isfinite().all()


@pytest.mark.parametrize("bypass", [True, False])
def test_a_fused_layer_is_compiled_into_one_graph(bypass: bool) -> None:
    fused, _ = both(bypass_mode=bypass)
    expected = fused.step()
    compiled = Layer(torch.compile(fused.layer, backend="eager", fullgraph=True), fused.lora, fused.inputs).step()
    assert relative(compiled[0], expected[0]) < 1e-6
    assert all(relative(mine, other) < 1e-6 for mine, other in zip(compiled[1], expected[1], strict=True))


@pytest.mark.parametrize("bypass", [True, False])
def test_the_strength_of_the_adapter_counts_at_each_call(bypass: bool) -> None:
    fused, library = both(bypass_mode=bypass)
    for strength in (1.0, 0.25, 0.0):
        for layer in (fused, library):
            layer.lora.multiplier = strength
        assert relative(fused.step()[0], library.step()[0]) < 1e-6
