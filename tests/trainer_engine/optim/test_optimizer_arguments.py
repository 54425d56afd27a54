"""What validate accepts in optimizer_config, every optimizer can train with; the rest is refused before the engine starts."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from trainer_engine.config.optimizer_arguments import LARGEST, Argument
from trainer_engine.config.optimizers import OPTIMIZERS
from trainer_engine.config.options.optimizer import OptimizerOptions
from trainer_engine.config.rules.optimizer import argument_problems
from trainer_engine.contract.errors import InvalidOptions
from trainer_engine.optim.optimizers import build_optimizer, start_training

ON_A_CPU = sorted(row.name for row in OPTIMIZERS.values() if not row.needs_gpu)
pytestmark = pytest.mark.filterwarnings("ignore::Warning:optimi.*")
ODD: tuple[Any, ...] = (-1, -1e-12, math.nan, math.inf, LARGEST * 2, 10**400, "0.5", [1], {})


def codes(name: str, config: dict[str, Any]) -> list[str]:
    return [problem.code for problem in argument_problems(name, config)]


def accepted(argument: Argument) -> Iterator[Any]:
    """The edges of the range, a value within it, and the one that leaves the argument out."""
    yield None
    if argument.kind is bool:
        yield from (True, False)
    else:
        yield from (argument.low, argument.high, max(argument.low, min(argument.high, 1)))


def train(name: str, config: dict[str, Any]) -> list[nn.Parameter]:
    """Takes three steps with gradients of 0.01 and returns the weights."""
    weights = [nn.Parameter(torch.ones(shape)) for shape in ((4, 3), (4,))]
    optimizer = build_optimizer(OptimizerOptions(optimizer=name, optimizer_config=config, learning_rate=1e-3), weights)
    start_training(optimizer)
    for _ in range(3):
        for weight in weights:
            weight.grad = torch.full_like(weight, 0.01)
        optimizer.step()
    return weights


@pytest.mark.parametrize("name", ON_A_CPU)
def test_an_optimizer_trains_with_every_value_that_validate_accepts(name: str) -> None:
    for argument, values in OPTIMIZERS[name].arguments.items():
        for value in accepted(values):
            config = {"momentum": 0.9, argument: value} if argument == "nesterov" else {argument: value}
            if not codes(name, config):
                train(name, config)  # raises if the optimizer cannot work with it


@pytest.mark.parametrize("name", ON_A_CPU)
def test_an_argument_of_none_is_the_default_of_the_optimizer(name: str) -> None:
    plain = train(name, {"fused": None} if OPTIMIZERS[name].has_fused else {})
    left_out = train(name, dict.fromkeys(OPTIMIZERS[name].arguments))
    assert all(torch.equal(weight, other) for weight, other in zip(plain, left_out, strict=True))


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_validate_refuses_every_value_outside_the_range_of_an_argument(name: str) -> None:
    for argument, values in OPTIMIZERS[name].arguments.items():
        outside = [*ODD, 1, 0] if values.kind is bool else [*ODD, True, values.low - 1, values.high * 1.01]
        outside += [values.low + 0.5] if values.kind is int else []
        assert [value for value in outside if codes(name, {argument: value}) != ["bad_argument"]] == [], argument


@pytest.mark.parametrize(
    ("name", "config", "kept"),
    [
        ("torch-adamw", {"fused": True, "foreach": True}, {"fused": True, "foreach": False}),
        ("torch-sgd", {"nesterov": True}, {"nesterov": True, "momentum": 0.9}),
        ("torch-sgd", {"nesterov": True, "momentum": 0.9, "dampening": 0.1}, {"nesterov": True, "momentum": 0.9, "dampening": 0}),
    ],
)
def test_arguments_that_exclude_each_other_are_refused(name: str, config: dict[str, Any], kept: dict[str, Any]) -> None:
    assert codes(name, config) == ["bad_argument"] and codes(name, kept) == []
    with pytest.raises(InvalidOptions, match="optimizer_config"):
        train(name, config)
    train(name, kept)


def test_a_whole_number_may_be_written_as_a_float() -> None:
    """As in ``optimizer_config=k=6``, whose numbers are parsed as floats."""
    assert codes("optimi-ranger", {"k": 6.0}) == []
    assert codes("optimi-ranger", {"k": 6.5}) == codes("optimi-ranger", {"k": 0}) == ["bad_argument"]
