"""The state that each optimizer really keeps has the size that the table of optimizers states."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import Optimizer

from tests.helpers.models import tiny_family
from tests.trainer_engine.adapters.test_numerics import our_loss
from tests.trainer_engine.adapters.test_runs import LOKR, STANDARD, lycoris
from trainer_engine.adapters.build import make_trainable
from trainer_engine.config.optimizers import OPTIMIZERS
from trainer_engine.config.options.optimizer import OptimizerOptions
from trainer_engine.optim.optimizers import build_optimizer, start_training

ON_A_CPU = sorted(row.name for row in OPTIMIZERS.values() if not row.needs_gpu)
COUNTER_BYTES = 24
"""Most bytes of the step counters and norms that an optimizer keeps for a weight in addition to its state."""


def tensor_bytes(state: Any) -> int:
    """Bytes of all tensors in a ``state_dict``."""
    if isinstance(state, torch.Tensor):
        return state.nbytes
    values = state.values() if isinstance(state, Mapping) else state if isinstance(state, list) else ()
    return sum(tensor_bytes(value) for value in values)


def after_one_step(name: str, config: Mapping[str, Any], weights: list[nn.Parameter]) -> Optimizer:
    optimizer = build_optimizer(OptimizerOptions(optimizer=name, optimizer_config=dict(config)), weights)
    start_training(optimizer)
    optimizer.step()
    return optimizer


def stated_bytes(name: str, config: Mapping[str, Any], weights: list[nn.Parameter]) -> int:
    return sum(OPTIMIZERS[name].state_bytes(weight.shape, weight.element_size(), config) for weight in weights)


SETTINGS = [
    *((name, {}) for name in ON_A_CPU),
    *((row.name, {more: True if row.arguments[more].kind is bool else 0.5}) for row in OPTIMIZERS.values() for more in row.moments_with),
    *((name, {"kahan_sum": choice}) for name in ("optimi-adamw", "optimi-adan") for choice in (True, False)),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("name", "config"), SETTINGS)
def test_the_table_states_the_size_of_the_real_state(name: str, config: Mapping[str, Any], dtype: torch.dtype) -> None:
    weights = [nn.Parameter(torch.ones(shape, dtype=dtype)) for shape in ((96, 64), (64,), (32, 16, 3, 3))]
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    difference = tensor_bytes(after_one_step(name, config, weights).state_dict()) - stated_bytes(name, config, weights)
    assert 0 <= difference <= COUNTER_BYTES * len(weights)


@pytest.mark.parametrize("name", ON_A_CPU)
@pytest.mark.parametrize("kind", ["full", "standard", "lokr"])
def test_a_trained_network_keeps_the_state_that_the_table_states(name: str, kind: str, tmp_path: Path) -> None:
    values = {"full": {}, "standard": STANDARD, "lokr": lycoris(tmp_path, **LOKR)}[kind]
    trainable = make_trainable(tiny_family(**values), None)
    our_loss(tiny_family(), trainable.network).backward()
    weights = list(trainable.parameters)
    # prodigy keeps no copy of weights that begin at zero.
    spared = sum(weight.nbytes for weight in weights if name == "prodigy" and not weight.any())
    kept = tensor_bytes(after_one_step(name, {}, weights).state_dict())
    assert 0 <= kept - (stated_bytes(name, {}, weights) - spared) <= COUNTER_BYTES * len(weights)
