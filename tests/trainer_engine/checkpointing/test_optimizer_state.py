"""The state of an optimizer in a checkpoint comes back exactly, or is refused with one kind of error, whatever its file holds."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim import Optimizer

from tests.helpers.damage import places, with_value
from trainer_engine.checkpointing.optimizer_state import all_finite, pack, pack_optimizer, unpack, unpack_optimizer
from trainer_engine.config.options.optimizer import OptimizerOptions
from trainer_engine.optim.optimizers import build_optimizer, start_training

NAMES = ["weight", "bias"]
WRONG: tuple[Any, ...] = (
    *(None, True, -1, 1.5, "x", [], {}, [1], {"a": 1}, 10**400),
    *({"tensor": "gone"}, {"map": 5}, {"map": [5]}, {"map": [[1, 2]]}, {"map": [[{"list": []}, 1]]}, {"list": 5}, {"tuple": [1]}),
)


def made(name: str) -> Optimizer:
    weights = [nn.Parameter(torch.ones(3, 2)), nn.Parameter(torch.ones(2))]
    optimizer = build_optimizer(OptimizerOptions(optimizer=name, learning_rate=0.01), weights)
    start_training(optimizer)
    for weight in weights:
        weight.grad = torch.full_like(weight, 0.5)
    return optimizer


@pytest.mark.parametrize("name", ["torch-adamw", "torch-adafactor", "adamw_schedulefree", "prodigy", "optimi-ranger"])
def test_a_damaged_state_is_refused_as_a_wrong_value_or_a_missing_key(name: str) -> None:
    optimizer = made(name)
    optimizer.step()
    document, tensors = pack_optimizer(optimizer, NAMES)
    document = json.loads(json.dumps(document))
    everywhere = list(places(document))
    for path in [(), ("state",), ("groups",), *random.Random(3).sample(everywhere, min(25, len(everywhere)))]:
        for wrong in WRONG:
            try:
                unpack_optimizer(made(name), NAMES, with_value(document, path, wrong), tensors)
            except (KeyError, ValueError):
                pass  # any other error would end the run as a fault of the program


@pytest.mark.parametrize("names", [["weight"], ["weight", "other"], []])
def test_a_state_of_other_weights_is_refused(names: list[str]) -> None:
    optimizer = made("torch-adamw")
    optimizer.step()
    document, tensors = pack_optimizer(optimizer, NAMES)
    with pytest.raises((KeyError, ValueError)):
        unpack_optimizer(made("torch-adamw"), names, document, tensors)
    with pytest.raises(KeyError):
        unpack_optimizer(made("torch-adamw"), NAMES, document, {})


PLAIN = st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.floats(allow_nan=False) | st.text(max_size=5)
TREES = st.recursive(
    PLAIN | st.lists(st.floats(-9, 9, width=32), min_size=1, max_size=3).map(torch.tensor),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=4) | st.integers(0, 9), inner, max_size=3)
    ),
    max_leaves=8,
)


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        return isinstance(one, Tensor) and isinstance(other, Tensor) and torch.equal(one, other)
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return list(one) == list(other) and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(equal, one, other))
    return bool(one == other)


@given(TREES)
def test_every_tree_of_plain_values_and_tensors_survives_json(tree: Any) -> None:
    tensors: dict[str, Tensor] = {}
    document = json.loads(json.dumps(pack(tree, tensors, "root")))
    assert equal(unpack(document, tensors), tree)


@given(st.lists(st.lists(st.floats(-(2.0**99), 2.0**99, width=32) | st.sampled_from([float("inf"), float("nan")]), max_size=4), max_size=4))
def test_all_finite_agrees_with_a_look_at_every_number(values: list[list[float]]) -> None:
    filled = [torch.tensor(row) for row in values if row]
    assert all_finite(filled) == all(bool(tensor.isfinite().all()) for tensor in filled)
