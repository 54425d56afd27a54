"""Fused projections: the numbers, gradients and files of those that are computed one by one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from tests.helpers.gradients import FAMILIES, LORA, one_pass, step_inputs, tiny, trainable_of, usual_pass
from tests.helpers.params import often
from trainer_engine.families.common.fused_projections import fuse_projections


class Attend(nn.Module):
    """The projections of an attention layer."""

    def __init__(self, *, is_cross: bool = False, bias: bool = True) -> None:
        super().__init__()
        self.is_cross_attention = is_cross
        self.to_q, self.to_k, self.to_v = nn.Linear(6, 8, bias), nn.Linear(6, 8, bias), nn.Linear(6, 4, bias)

    def forward(self, tokens: Tensor, context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.to_q(tokens), self.to_k(context), self.to_v(context)


class Multiplications:
    """Counts the calls of ``F.linear`` that reach it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.weights: list[Tensor] = []
        usual = F.linear

        def counted(tokens: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
            self.weights.append(weight)
            return usual(tokens, weight, bias)

        monkeypatch.setattr(F, "linear", counted)


@pytest.mark.parametrize("name", often(FAMILIES))
@pytest.mark.parametrize(
    "kind",
    [{}, LORA, *(pytest.param({**LORA, key: True}, marks=pytest.mark.slow) for key in ("use_dora", "gradient_checkpointing"))],
    ids=str,
)
def test_fused_projections_equal_those_that_are_computed_one_by_one(name: str, kind: dict[str, Any]) -> None:
    fused = tiny(name, fuse_qkv_projections=True, **kind)
    trainable, usual = trainable_of(fused), usual_pass(name, **kind)
    assert tuple(trainable.network.state_dict()) == usual.names
    assert one_pass(fused, trainable).is_close_to(usual, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", often(FAMILIES))
def test_fewer_multiplications_compute_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    family, plain = tiny(name, fuse_qkv_projections=True, **LORA), tiny(name, **LORA)
    networks = family.load_network(), plain.load_network()
    inputs, counts = step_inputs(family), []
    counted = Multiplications(monkeypatch)
    with torch.no_grad():
        for network in networks:
            counted.weights.clear()
            family.predict(network, inputs)
            counts.append(len(counted.weights))
    assert counts[0] < counts[1]


@pytest.mark.parametrize(("is_cross", "multiplications"), [(False, 1), (True, 2)])
def test_keys_and_values_alone_are_fused_in_cross_attention(is_cross: bool, multiplications: int, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = Attend(is_cross=is_cross).requires_grad_(False)
    tokens = torch.randn(2, 3, 6)
    context = torch.randn(2, 5, 6) if is_cross else tokens
    wanted = layer(tokens, context)
    fuse_projections(layer)
    counted = Multiplications(monkeypatch)
    for one, other in zip(layer(tokens, context), wanted, strict=True):
        assert torch.allclose(one, other, atol=1e-6)
    assert len(counted.weights) == multiplications


@pytest.mark.parametrize(("place", "multiplications"), [("self_attention", 1), ("cross_attention", 2)])
def test_projections_with_their_names_in_full_are_fused_and_the_place_of_the_layer_says_what_it_attends_to(
    place: str, multiplications: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = nn.Module().requires_grad_(False)
    for name in ("to_query", "to_key", "to_value"):
        layer.add_module(name, nn.Linear(6, 8).requires_grad_(False))
    block = nn.ModuleDict({place: layer})
    tokens, context = torch.randn(2, 3, 6), torch.randn(2, 5, 6)
    inputs = {"to_query": tokens, "to_key": tokens if multiplications == 1 else context}
    inputs["to_value"] = inputs["to_key"]
    wanted = {name: layer.get_submodule(name)(one) for name, one in inputs.items()}
    fuse_projections(block)
    counted = Multiplications(monkeypatch)
    for name, one in inputs.items():
        assert torch.allclose(layer.get_submodule(name)(one), wanted[name], atol=1e-6)
    assert len(counted.weights) == multiplications


def test_frozen_weights_are_fused_without_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, tokens = Attend(bias=False).requires_grad_(False), torch.randn(1, 3, 6)
    fuse_projections(layer)
    counted = Multiplications(monkeypatch)
    layer(tokens, tokens)
    assert counted.weights[0].data_ptr() == layer.to_q.weight.data_ptr() and counted.weights[0].shape == (20, 6)


def test_a_weight_that_was_moved_or_changed_counts_as_it_is_now() -> None:
    layer, tokens = Attend(bias=False).requires_grad_(False), torch.randn(1, 3, 6)
    fuse_projections(layer)
    layer.to_k.weight.data = layer.to_k.weight.detach().clone() * 2
    layer.to_v.weight.mul_(3)
    for output, linear in zip(layer(tokens, tokens), (layer.to_q, layer.to_k, layer.to_v), strict=True):
        assert torch.allclose(output, tokens @ linear.weight.T, atol=1e-6)


def test_each_input_gets_its_own_outputs_whatever_was_computed_before() -> None:
    layer = Attend().requires_grad_(False)
    first, second = torch.randn(1, 3, 6), torch.randn(1, 3, 6)
    wanted = [F.linear(one, layer.to_v.weight, layer.to_v.bias) for one in (first, second)]
    fuse_projections(layer)
    layer.to_q(first)
    assert torch.allclose(layer.to_v(second), wanted[1], atol=1e-6)
    assert torch.allclose(layer.to_v(first), wanted[0], atol=1e-6)
    assert torch.allclose(layer.to_v(first), wanted[0], atol=1e-6)


def test_nothing_is_kept_after_the_last_projection() -> None:
    layer, tokens = Attend().requires_grad_(False), torch.randn(1, 3, 6)
    fuse_projections(layer)
    layer(tokens, tokens)
    joined = layer.to_q.forward.__closure__
    kept = [cell.cell_contents for cell in joined or () if hasattr(cell.cell_contents, "outputs")]
    assert kept and kept[0].input is None and kept[0].outputs == [None] * 3


def test_an_adapter_on_one_projection_counts_in_it_alone() -> None:
    layer, tokens = Attend().requires_grad_(False), torch.randn(1, 3, 6)
    plain = layer(tokens, tokens)
    fuse_projections(layer)
    inject_adapter_in_model(LoraConfig(r=2, target_modules=["to_k"], init_lora_weights=False), layer, "default")
    query, key, value = layer(tokens, tokens)
    assert torch.allclose(query, plain[0], atol=1e-6) and torch.allclose(value, plain[2], atol=1e-6)
    assert not torch.allclose(key, plain[1], atol=1e-4)


def test_layers_of_other_inputs_or_kinds_are_left_alone() -> None:
    layer = Attend()
    layer.to_k = nn.Linear(5, 8)
    usual = layer.to_q.forward
    fuse_projections(layer)
    assert layer.to_q.forward == usual and "forward" not in vars(layer.to_q)
