"""The ``sdnq_*`` options change how the layers of a network are quantised, and the same options give the same weights again."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.helpers.models import options_with
from trainer_engine.config.precisions import PRECISIONS
from trainer_engine.config.sdnq_settings import settings_of, weights_identity
from trainer_engine.contract.errors import InvalidOptions
from trainer_engine.weights.quantised.layer import QuantisedLinear
from trainer_engine.weights.quantised.sdnq_types import SdnqLinear
from trainer_engine.weights.quantization import quantiser

CPU = torch.device("cpu")
ADAPTER: dict[str, Any] = {"model_type": "lora", "base_model_precision": "uint4-sdnq"}


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.attention, self.feed_forward, self.out = nn.Linear(128, 128), nn.Linear(128, 128), nn.Linear(128, 64)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.feed_forward(self.attention(x)))


def quantised(name: str = "uint4-sdnq", **values: Any) -> Network:
    network = Network()
    assert quantiser(name, options_with(**{**ADAPTER, **values}), CPU).apply(network) == []
    return network


def error(network: Network) -> float:
    """Error of the weights of the first layer, as a share of their size."""
    exact = Network().attention.weight
    return float((network.attention.weight - exact).detach().norm() / exact.detach().norm())


def test_the_type_of_the_options_replaces_that_of_the_precision() -> None:
    assert error(quantised(sdnq_weights_dtype="int8")) == pytest.approx(error(quantised("int8-sdnq")))


def test_singular_vectors_and_smaller_groups_lower_the_error() -> None:
    plain = error(quantised())
    assert error(quantised(sdnq_group_size=16)) < plain
    assert error(quantised(sdnq_use_svd=True, sdnq_svd_rank=64)) < 0.8 * plain
    assert error(quantised(sdnq_group_size=-1)) > plain


def test_a_rotation_changes_the_rounding_and_is_undone() -> None:
    rotated = quantised(sdnq_use_hadamard=True, sdnq_hadamard_group_size=64)
    assert not torch.equal(rotated.attention.weight, quantised().attention.weight)
    assert error(rotated) < 0.12


def test_quantised_products_stay_near_the_exact_ones() -> None:
    x = torch.randn(2, 40, 128, generator=torch.Generator().manual_seed(3))
    plain, product = quantised("int8-sdnq"), quantised("int8-sdnq", sdnq_use_quantized_matmul=True)
    with torch.no_grad():
        wanted, found = plain(x), product(x)
    assert not torch.equal(wanted, found)
    assert float((wanted - found).norm() / wanted.norm()) < 0.03


def test_dynamic_quantisation_keeps_exact_weights_and_rounds_each_product() -> None:
    x = torch.randn(2, 40, 128, generator=torch.Generator().manual_seed(3))
    dynamic = quantised("int8-sdnq", sdnq_use_quantized_matmul=True, sdnq_use_static_quantization=False)
    static = quantised("int8-sdnq", sdnq_use_quantized_matmul=True)
    assert torch.equal(dynamic.attention.weight, Network().attention.weight)
    with torch.no_grad():
        torch.testing.assert_close(dynamic(x), static(x))


def test_modules_are_left_out_and_get_types_and_settings_of_their_own() -> None:
    network = quantised(
        sdnq_modules_to_not_convert=json.dumps(["out"]),
        sdnq_modules_dtype_dict=json.dumps({"int8": ["feed_*"]}),
        sdnq_modules_quant_config=json.dumps({"attention": {"group_size": 16}}),
    )
    assert type(network.out) is nn.Linear
    assert isinstance(network.feed_forward, SdnqLinear) and network.feed_forward.arguments["weights_dtype"] == "int8"
    assert isinstance(network.attention, SdnqLinear) and network.attention.arguments["group_size"] == 16


@pytest.mark.parametrize("values", [{"sdnq_use_stochastic_rounding": True}, {"sdnq_use_svd": True, "sdnq_svd_rank": 8}])
def test_random_steps_of_quantisation_repeat_and_leave_the_generator_alone(values: dict[str, Any]) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = quantised(**values)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    assert torch.equal(one.attention.weight, quantised(**values).attention.weight)
    assert isinstance(one.attention, QuantisedLinear)


def test_two_layers_of_one_shape_are_rounded_by_different_chance() -> None:
    network = Network()
    network.feed_forward.load_state_dict(network.attention.state_dict())
    quantiser("uint4-sdnq", options_with(**ADAPTER, sdnq_use_stochastic_rounding=True), CPU).apply(network)
    assert not torch.equal(network.attention.weight, network.feed_forward.weight)


def problems(**values: Any) -> set[tuple[str, str]]:
    try:
        options_with(**{**ADAPTER, **values})
    except InvalidOptions as refused:
        return {(problem.option, problem.code) for problem in refused.problems}
    return set()


@pytest.mark.parametrize(
    ("option", "value", "code"),
    [
        ("sdnq_weights_dtype", "int1", "not_a_choice"),
        ("sdnq_group_size", -3, "out_of_range"),
        ("sdnq_modules_to_not_convert", "[1]", "not_names"),
        ("sdnq_modules_to_not_use_matmul", "[", "not_json"),
        ("sdnq_modules_dtype_dict", '{"int1": ["a"]}', "unknown_type"),
        ("sdnq_modules_dtype_dict", "[]", "not_an_object"),
        ("sdnq_modules_quant_config", '{"a": {"colour": 1}}', "unknown_setting"),
        ("sdnq_modules_quant_config", '{"a": {"group_size": -3}}', "wrong_value"),
        ("sdnq_modules_quant_config", '{"a": {"use_svd": 1}}', "wrong_value"),
        ("sdnq_modules_quant_config", '{"a": 1}', "not_an_object"),
        ("sdnq_use_static_quantization", False, "nothing_quantised"),
    ],
)
def test_a_wrong_setting_is_a_problem_of_its_option(option: str, value: Any, code: str) -> None:
    assert problems(**{option: value}) == {(option, code)}


def test_the_identity_of_weights_names_every_setting_that_changes_them() -> None:
    assert weights_identity("uint4-sdnq", options_with(**ADAPTER)) == "uint4-sdnq"
    changed = options_with(**ADAPTER, sdnq_group_size=16, sdnq_compile_mode="disabled")
    assert weights_identity("uint4-sdnq", changed) == "uint4-sdnq sdnq_group_size=16"
    rounded = options_with(**ADAPTER, sdnq_use_stochastic_rounding=True, seed=7)
    assert "seed=7" in weights_identity("uint4-sdnq", rounded)
    assert weights_identity("int8-torchao", changed) == "int8-torchao"


def test_settings_that_are_left_out_keep_the_defaults_of_the_library() -> None:
    settings = settings_of(options_with(**ADAPTER).sdnq)
    assert dict(settings.shared) == {} and settings.is_static
    assert settings.arguments("a.b", "uint4") == {"weights_dtype": "uint4"}
    assert PRECISIONS["uint4-sdnq"].library_name == "uint4"
