"""The facts of each spec are those of its published networks at their real size, which torch's meta device makes without memory."""

from __future__ import annotations

import math
from typing import Any

import pytest
from torch import nn

from tests.bench.published import NETWORKS, document, published, published_network, shapes_of, starred, written
from tests.helpers.family_folders import assert_all_state
from trainer_engine.config.families import specs
from training.preflight.adapter import adapted_layers
from training.preflight.memory_table import table_options
from training.preflight.network import layer_shapes
from training.preflight.published_shapes import published_tensors
from training.preflight.weights import frozen_network_bytes, numbers_in, trained_weights

PUBLISHED = pytest.mark.parametrize(("family", "flavour"), list(published()))
RANK = 16


def linear_layers(network: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(one.weight.shape) for name, one in network.named_modules() if isinstance(one, nn.Linear)}


def adapted_in(family: str, flavour: str, **values: Any) -> dict[str, tuple[int, ...]]:
    options = table_options(specs()[family], flavour, {"model_type": "lora", "lora_rank": RANK, **values})
    weights = {name: shape for name, shape in shapes_of(family, flavour).items() if name.endswith(".weight") and len(shape) > 1}
    return adapted_layers(options, specs()[family], {name.removesuffix(".weight"): shape for name, shape in weights.items()})


def test_every_family_has_its_published_architecture() -> None:
    assert_all_state("network", "NETWORK", NETWORKS)
    assert [network.family for network in NETWORKS.values()] == list(NETWORKS)


@pytest.mark.parametrize("family", NETWORKS)
def test_the_spec_states_the_parameters_of_every_flavour(family: str) -> None:
    counted = {
        flavour: sum(parameter.numel() for parameter in published_network(family, flavour).parameters())
        for flavour in specs()[family].flavours
    }
    assert dict(specs()[family].parameters) == counted


@pytest.mark.parametrize("family", NETWORKS)
def test_the_shapes_on_the_disk_are_those_of_the_published_networks(family: str) -> None:
    assert written(family) == document(family), "python -m tests.bench.published writes them"
    for flavour in specs()[family].flavours:
        assert published_tensors(specs()[family], flavour) == shapes_of(family, flavour)


@PUBLISHED
def test_the_network_has_the_classes_that_the_spec_names(family: str, flavour: str) -> None:
    spec, classes = specs()[family], {type(module).__name__ for module in published_network(family, flavour).modules()}
    assert set(spec.repeated_blocks) <= classes
    named = {*spec.adapters.module_classes, *(one for many in spec.adapters.class_aliases.values() for one in many)}
    assert named <= classes, "an adapter file may name them"


@PUBLISHED
def test_every_target_of_a_standard_adapter_is_a_layer(family: str, flavour: str) -> None:
    layers = set(adapted_names(family, flavour))
    for target, endings in specs()[family].adapters.lora_targets.items():
        for ending in endings:
            matched = [name for name in layers if name == ending or name.endswith(f".{ending}")]
            assert matched or ending.startswith("controlnet_"), f"{target}: {ending}"


def adapted_names(family: str, flavour: str) -> list[str]:
    """The layers that an adapter can be on."""
    return [
        name.removesuffix(".weight") for name, shape in shapes_of(family, flavour).items() if name.endswith(".weight") and len(shape) > 1
    ]


@PUBLISHED
def test_the_estimate_counts_the_weights_of_the_published_network(family: str, flavour: str) -> None:
    spec, network, tensors = specs()[family], published_network(family, flavour), published_tensors(specs()[family], flavour)
    numbers, layers = sum(tensor.numel() for tensor in network.state_dict().values()), linear_layers(network)
    full = table_options(spec, flavour, {"model_type": "full"})
    assert numbers_in(trained_weights(full, spec, numbers, tensors)) == numbers
    chosen = adapted_in(family, flavour)
    assert chosen and set(chosen) <= set(layers)
    lora = table_options(spec, flavour, {"model_type": "lora", "lora_rank": RANK})
    assert numbers_in(trained_weights(lora, spec, numbers, tensors)) == sum(RANK * (out + into) for out, into in chosen.values())
    assert frozen_network_bytes(lora, spec, numbers, tensors) == 2 * numbers
    short = table_options(spec, flavour, {"model_type": "lora", "lora_rank": RANK, "base_model_precision": "int8-torchao"})
    saved = 2 * numbers - frozen_network_bytes(short, spec, numbers, tensors)
    assert saved == pytest.approx(sum(math.prod(shape) for shape in layers.values()), rel=0.01), "one byte of each weight of a linear layer"


def test_numbers_that_are_all_there_are_written_as_a_star() -> None:
    assert starred(["a.0.b", "a.1.b", "c"]) == ["a.*2.b", "c"]
    assert starred(["a.1.b", "a.2.b"]) == ["a.1.b", "a.2.b"], "they begin with 0"
    assert starred([f"a.{one}.b.{other}.c" for one in range(2) for other in range(3)]) == ["a.*2.b.*3.c"]
    assert starred(["a.0.b"]) == ["a.0.b"]


def test_a_run_that_trains_another_network_has_no_published_shapes() -> None:
    spec = specs()["flux"]
    assert published_tensors(spec.for_run(train_text_encoder=False, controlnet=True), None) is None
    assert published_tensors(specs()["sd1x"].for_run(train_text_encoder=True), None) is None
    widened = published_tensors(spec.for_run(train_text_encoder=False, control=True), "dev")
    assert widened is not None and widened["x_embedder.weight"] == (3072, 128)
    assert layer_shapes(widened)["proj_out"] == (64, 3072)
