"""Update rules by name, and their state without pickle."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import Optimizer

from trainer_engine.contract.errors import InvalidOptions
from trainer_engine.contract.options import REGISTRY, check_options
from trainer_engine.contract.options.optimizer import ARGUMENTS, WITHOUT_BETAS, OptimizerOptions
from trainer_engine.optimizers import RULES, build_optimizer, evaluating, note_on_precision, set_learning_rate, start_training
from trainer_engine.packing import all_finite, pack, pack_optimizer, unpack, unpack_optimizer

NAMES = ["layer.weight", "layer.bias"]
ON_A_CPU = sorted(name for name in RULES if not name.startswith("bnb-"))


def parameters(dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(3)
    return [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in ((4, 3), (4,))]


def options(**values: Any) -> OptimizerOptions:
    return OptimizerOptions(**{"learning_rate": 0.01, **values})


def take_steps(optimizer: Optimizer, weights: list[nn.Parameter], steps: range) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        for weight in weights:
            weight.grad = torch.randn(weight.shape, generator=generator).to(weight.dtype)
        optimizer.step()


def test_every_choice_of_the_option_has_a_rule() -> None:
    assert set(RULES) == set(REGISTRY["optimizer"].choices)


def test_torch_adamw_takes_the_step_of_the_paper() -> None:
    weights = parameters()
    before, gradient = weights[0].detach().clone(), torch.full((4, 3), 0.5)
    optimizer = build_optimizer(options(optimizer="torch-adamw", optimizer_config={"weight_decay": 0.1}), weights[:1])
    weights[0].grad = gradient
    optimizer.step()
    # Loshchilov and Hutter, 2019: the first corrected moments are g and g^2.
    assert torch.allclose(weights[0], before * (1 - 0.01 * 0.1) - 0.01 * gradient / (gradient + 1e-8), atol=1e-7)


def test_adamw_bf16_on_float32_is_adamw() -> None:
    ours, theirs = parameters(), parameters()
    take_steps(build_optimizer(options(optimizer="adamw_bf16"), ours), ours, range(20))
    take_steps(torch.optim.AdamW(theirs, lr=0.01, betas=(0.9, 0.999), eps=1e-6, weight_decay=0.01), theirs, range(20))
    for weight, other in zip(ours, theirs, strict=True):
        assert torch.allclose(weight, other, atol=1e-5)
    assert note_on_precision(options(optimizer="adamw_bf16"), torch.float32)
    assert not note_on_precision(options(optimizer="adamw_bf16"), torch.bfloat16)


def test_adamw_bf16_keeps_steps_that_rounding_would_lose() -> None:
    def moved(make: Callable[[list[nn.Parameter]], Optimizer]) -> float:
        weight = nn.Parameter(torch.ones(8, dtype=torch.bfloat16))
        optimizer = make([weight])
        for _ in range(100):
            weight.grad = torch.ones_like(weight)
            optimizer.step()
        return float(1 - weight.detach().float().mean())

    config = {"weight_decay": 0.0}
    kahan = moved(lambda weights: build_optimizer(options(optimizer="adamw_bf16", learning_rate=1e-4, optimizer_config=config), weights))
    plain = moved(lambda weights: torch.optim.AdamW(weights, lr=1e-4, weight_decay=0.0))
    assert plain == 0.0
    assert kahan == pytest.approx(0.01, rel=0.5)


@pytest.mark.parametrize("name", [name for name in ON_A_CPU if name not in WITHOUT_BETAS])
def test_betas_reach_the_optimizer(name: str) -> None:
    optimizer = build_optimizer(options(optimizer=name, optimizer_beta1=0.5, optimizer_beta2=0.6), parameters())
    group = optimizer.param_groups[0]
    assert (group.get("betas") or (group["beta1"], group["beta2"]))[:2] == (0.5, 0.6)


def test_rules_without_betas_are_known_as_such() -> None:
    assert {name for name, rule in RULES.items() if rule.betas is None} == WITHOUT_BETAS


@pytest.mark.parametrize("name", ON_A_CPU)
def test_every_argument_that_may_be_given_is_one_of_the_optimizer(name: str) -> None:
    assert set(ARGUMENTS[name]) <= set(inspect.signature(RULES[name].make).parameters)


@pytest.mark.parametrize("name", sorted(set(RULES) - set(ON_A_CPU)))
def test_a_missing_library_is_told_by_name(name: str) -> None:
    _, problems = check_options({"model_family": "pixart_sigma", "model_type": "full", "optimizer": name})
    assert ("optimizer", "not_installed") in {(problem.option, problem.code) for problem in problems}
    with pytest.raises(InvalidOptions, match="bitsandbytes"):
        build_optimizer(options(optimizer=name), parameters())


def test_schedule_free_weights_are_shown_and_those_it_trains_on_come_back() -> None:
    weights = parameters()
    optimizer = build_optimizer(options(optimizer="adamw_schedulefree", learning_rate=0.1), weights)
    start_training(optimizer)
    take_steps(optimizer, weights, range(4))
    before = [weight.detach().clone() for weight in weights]
    with evaluating(optimizer):
        assert not torch.equal(weights[0], before[0])
    assert all(torch.equal(weight, other) for weight, other in zip(weights, before, strict=True))
    take_steps(optimizer, weights, range(4, 5))


@pytest.mark.parametrize("name", ON_A_CPU)
def test_an_unknown_argument_is_named_with_those_there_are(name: str) -> None:
    with pytest.raises(InvalidOptions) as raised:
        build_optimizer(options(optimizer=name, optimizer_config={"weight_decai": 0.1, "momentun": 1.0}), parameters())
    assert [problem.got for problem in raised.value.problems] == ["weight_decai", "momentun"]
    assert all("weight_decay" in problem.expected for problem in raised.value.problems)


def test_a_refused_value_is_a_problem_of_the_configuration() -> None:
    with pytest.raises(InvalidOptions, match="optimizer_config"):
        build_optimizer(options(optimizer="torch-adamw", optimizer_config={"eps": -1.0}), parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ON_A_CPU)
def test_a_state_that_went_through_json_and_tensors_goes_on_with_the_same_bytes(name: str, dtype: torch.dtype) -> None:
    straight, halted = parameters(dtype), parameters(dtype)
    whole = build_optimizer(options(optimizer=name), straight)
    start_training(whole)
    take_steps(whole, straight, range(6))
    first = build_optimizer(options(optimizer=name), halted)
    start_training(first)
    take_steps(first, halted, range(3))
    document, tensors = pack_optimizer(first, NAMES)
    second = build_optimizer(options(optimizer=name), halted)
    start_training(second)
    unpack_optimizer(second, NAMES, json.loads(json.dumps(document)), {key: value.clone() for key, value in tensors.items()})
    take_steps(second, halted, range(3, 6))
    assert all(torch.equal(one, other) for one, other in zip(straight, halted, strict=True))


def test_a_state_of_other_parameters_is_refused() -> None:
    weights = parameters()
    optimizer = build_optimizer(options(), weights)
    take_steps(optimizer, weights, range(1))
    document, tensors = pack_optimizer(optimizer, NAMES)
    with pytest.raises(KeyError):
        unpack_optimizer(optimizer, ["other.weight", "other.bias"], document, tensors)


def test_packing_keeps_every_plain_value() -> None:
    tree = {"a": [1, 2.5, None, True, "x"], 3: (1, (2,)), "t": torch.arange(3), "s": torch.tensor(4), "e": {}}
    tensors: dict[str, torch.Tensor] = {}
    back = unpack(json.loads(json.dumps(pack(tree, tensors, "root"))), tensors)
    assert torch.equal(back.pop("t"), tree.pop("t")) and torch.equal(back.pop("s"), tree.pop("s"))
    assert back == tree


def test_what_is_neither_json_nor_tensor_is_not_packed() -> None:
    with pytest.raises(TypeError, match="root.a holds a object"):
        pack({"a": object()}, {}, "root")


@pytest.mark.parametrize("document", [{"tensor": "t", "more": 1}, {"other": []}])
def test_documents_of_others_are_refused(document: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="no packed state"):
        unpack(document, {})


@pytest.mark.parametrize("worst", [float("nan"), float("inf"), -float("inf")])
def test_one_bad_number_is_found_anywhere(worst: float) -> None:
    good = [torch.ones(3), torch.zeros(2, 2)]
    assert all_finite(good) and all_finite([])
    good[1][1, 0] = worst
    assert not all_finite(good)


def test_the_learning_rate_reaches_every_group() -> None:
    optimizer = build_optimizer(options(), parameters())
    set_learning_rate(optimizer, 0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5]
