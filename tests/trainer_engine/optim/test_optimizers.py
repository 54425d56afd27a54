"""Optimizers are built by name with checked arguments, and their state is saved without pickle."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode

from tests.helpers.models import options_with, tiny_family
from tests.trainer_engine.adapters.test_numerics import our_loss
from tests.trainer_engine.adapters.test_runs import LOKR, STANDARD, lycoris
from trainer_engine.adapters.build import make_trainable
from trainer_engine.checkpointing.optimizer_state import all_finite, pack, pack_optimizer, unpack, unpack_optimizer
from trainer_engine.config.optimizers import OPTIMIZERS
from trainer_engine.config.options import REGISTRY
from trainer_engine.config.options.optimizer import OptimizerOptions
from trainer_engine.config.parse import check_options
from trainer_engine.config.rules.optimizer import float32_weights_note
from trainer_engine.contract.errors import InvalidOptions
from trainer_engine.optim.optimizers import BUILDERS, build_optimizer, evaluating, set_learning_rates, start_training

NAMES = ["layer.weight", "layer.bias"]
ON_A_CPU = sorted(row.name for row in OPTIMIZERS.values() if not row.needs_gpu)


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


def test_table_option_and_builders_hold_the_same_optimizers() -> None:
    assert list(BUILDERS) == list(OPTIMIZERS) == list(REGISTRY["optimizer"].choices)


def test_torch_adamw_takes_the_step_of_the_paper() -> None:
    weights = parameters()
    before, gradient = weights[0].detach().clone(), torch.full((4, 3), 0.5)
    optimizer = build_optimizer(options(optimizer="torch-adamw", optimizer_config={"weight_decay": 0.1}), weights[:1])
    weights[0].grad = gradient
    optimizer.step()
    # Loshchilov and Hutter, 2019: the first corrected moments are g and g^2.
    assert torch.allclose(weights[0], before * (1 - 0.01 * 0.1) - 0.01 * gradient / (gradient + 1e-8), atol=1e-7)


def test_adamw_bf16_updates_float32_weights_as_adamw_does() -> None:
    ours, theirs = parameters(), parameters()
    take_steps(build_optimizer(options(optimizer="adamw_bf16"), ours), ours, range(20))
    take_steps(torch.optim.AdamW(theirs, lr=0.01, betas=(0.9, 0.999), eps=1e-6, weight_decay=0.01), theirs, range(20))
    for weight, other in zip(ours, theirs, strict=True):
        assert torch.allclose(weight, other, atol=1e-5)
    assert float32_weights_note("adamw_bf16", "no")
    assert not float32_weights_note("adamw_bf16", "bf16") and not float32_weights_note("torch-adamw", "no")


def test_adamw_bf16_keeps_updates_that_rounding_would_lose() -> None:
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


@pytest.mark.parametrize("name", [name for name in ON_A_CPU if OPTIMIZERS[name].betas])
def test_betas_reach_the_optimizer(name: str) -> None:
    optimizer = build_optimizer(options(optimizer=name, optimizer_beta1=0.5, optimizer_beta2=0.6), parameters())
    group = optimizer.param_groups[0]
    assert (group.get("betas") or (group["beta1"], group["beta2"]))[:2] == (0.5, 0.6)


@pytest.mark.parametrize("name", ON_A_CPU)
def test_optimizers_without_betas_take_none(name: str) -> None:
    taken = inspect.signature(BUILDERS[name]).parameters
    assert bool({"betas", "beta1"}.intersection(taken)) == (OPTIMIZERS[name].betas is not None)


@pytest.mark.parametrize("name", ON_A_CPU)
def test_the_class_of_an_optimizer_takes_every_argument_of_the_table(name: str) -> None:
    assert set(OPTIMIZERS[name].arguments) <= set(inspect.signature(BUILDERS[name]).parameters)


@pytest.mark.parametrize("name", sorted(set(OPTIMIZERS) - set(ON_A_CPU)))
def test_validate_and_engine_name_a_missing_library(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("bitsandbytes", "bitsandbytes.optim"):
        monkeypatch.setitem(sys.modules, module, None)
    _, problems = check_options({"model_family": "pixart_sigma", "model_type": "full", "optimizer": name})
    assert ("optimizer", "not_installed") in {(problem.option, problem.code) for problem in problems}
    with pytest.raises(InvalidOptions, match="bitsandbytes"):
        build_optimizer(options(optimizer=name), parameters())


def test_evaluating_uses_averaged_weights_and_restores_the_trained_ones() -> None:
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
def test_an_unknown_argument_is_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(InvalidOptions) as raised:
        build_optimizer(options(optimizer=name, optimizer_config={"weight_decai": 0.1, "momentun": 1.0}), parameters())
    assert [problem.got for problem in raised.value.problems] == ["weight_decai", "momentun"]
    assert all("weight_decay" in problem.expected for problem in raised.value.problems)


def test_a_value_that_the_optimizer_refuses_is_a_problem_of_optimizer_config() -> None:
    with pytest.raises(InvalidOptions, match="optimizer_config"):
        build_optimizer(options(optimizer="torch-adamw", optimizer_config={"eps": -1.0}), parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ON_A_CPU)
def test_an_optimizer_restored_from_json_and_tensors_continues_bit_for_bit(name: str, dtype: torch.dtype) -> None:
    straight, halted = parameters(dtype), parameters(dtype)
    uninterrupted = build_optimizer(options(optimizer=name), straight)
    start_training(uninterrupted)
    take_steps(uninterrupted, straight, range(6))
    first = build_optimizer(options(optimizer=name), halted)
    start_training(first)
    take_steps(first, halted, range(3))
    document, tensors = pack_optimizer(first, NAMES)
    second = build_optimizer(options(optimizer=name), halted)
    start_training(second)
    unpack_optimizer(second, NAMES, json.loads(json.dumps(document)), {key: value.clone() for key, value in tensors.items()})
    take_steps(second, halted, range(3, 6))
    assert all(torch.equal(one, other) for one, other in zip(straight, halted, strict=True))


class Operators(TorchDispatchMode):
    """Counts operators and reads of numbers from the ``meta`` device, which stands for a GPU; each read gets 1.0."""

    def __init__(self) -> None:
        super().__init__()
        self.count = self.reads = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        self.count += 1
        if func is torch.ops.aten._local_scalar_dense.default and args[0].device.type == "meta":
            self.reads += 1
            return 1.0
        return func(*args, **(kwargs or {}))


def in_a_step(name: str, tensors: int, device: str) -> Operators:
    """Returns the operators of the second step over this many tensors."""
    weights = [nn.Parameter(torch.ones(8, 8, device=device)) for _ in range(tensors)]
    optimizer = build_optimizer(options(optimizer=name), weights)
    start_training(optimizer)
    for _ in range(2):
        for weight in weights:
            weight.grad = torch.ones(8, 8, device=device)
        with Operators() as seen:
            optimizer.step()
    return seen


@pytest.mark.parametrize("name", ON_A_CPU)
def test_validate_names_the_optimizers_that_read_from_the_device_for_each_tensor(name: str) -> None:
    few, many = in_a_step(name, 1, "meta").reads, in_a_step(name, 5, "meta").reads
    assert (many > few) == OPTIMIZERS[name].reads_every_tensor
    _, problems = check_options({"model_family": "pixart_sigma", "model_type": "full", "optimizer": name})
    assert (("optimizer", "reads_every_tensor") in {(one.option, one.code) for one in problems}) == OPTIMIZERS[name].reads_every_tensor
    assert (name in REGISTRY["optimizer"].help.partition("turns that off.")[2]) == OPTIMIZERS[name].reads_every_tensor


@pytest.mark.parametrize("name", ["torch-adam", "torch-adamw"])
def test_adam_updates_all_weights_in_one_operator_where_type_and_device_allow(name: str) -> None:
    assert in_a_step(name, 20, "cpu").count == in_a_step(name, 1, "cpu").count
    for dtype in (torch.float32, torch.bfloat16):
        assert build_optimizer(options(optimizer=name), parameters(dtype)).param_groups[0]["fused"]


@pytest.mark.parametrize("config", [{"fused": False}, {"fused": None}, {"foreach": True}])
def test_optimizer_config_chooses_the_kernel_of_adamw(config: dict[str, Any]) -> None:
    group = build_optimizer(options(optimizer="torch-adamw", optimizer_config=config), parameters()).param_groups[0]
    assert not group["fused"] and group["foreach"] == config.get("foreach")


@pytest.mark.parametrize(
    "weight",
    [torch.ones(3, 4, dtype=torch.float16), torch.ones(3, 4).t(), torch.ones(2, 3, 4, 4).to(memory_format=torch.channels_last)],
    ids=["float16", "transposed", "channels-last"],
)
def test_the_plain_kernel_updates_weights_that_the_fused_one_does_not_take(weight: torch.Tensor) -> None:
    weights = [*parameters(), nn.Parameter(weight)]
    assert not build_optimizer(options(optimizer="torch-adamw"), weights).param_groups[0]["fused"]


@pytest.mark.parametrize("kind", ["full", "standard", "lokr"])
def test_weights_and_gradients_are_contiguous(kind: str, tmp_path: Path) -> None:
    values = {"full": {}, "standard": STANDARD, "lokr": lycoris(tmp_path, **LOKR)}[kind]
    trainable = make_trainable(tiny_family(**values), None)
    our_loss(tiny_family(), trainable.network).backward()
    assert trainable.parameters
    for weight in trainable.parameters:
        assert weight.grad is not None and weight.is_contiguous() and weight.grad.is_contiguous()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_fused_kernel_takes_the_steps_of_the_plain_one_up_to_rounding(dtype: torch.dtype) -> None:
    fused, plain = parameters(dtype), parameters(dtype)
    take_steps(build_optimizer(options(optimizer="torch-adamw"), fused), fused, range(20))
    take_steps(build_optimizer(options(optimizer="torch-adamw", optimizer_config={"fused": False}), plain), plain, range(20))
    for weight, other in zip(fused, plain, strict=True):
        # bfloat16 has 8 bits, and the plain kernel rounds after each operator.
        assert torch.allclose(weight, other, atol=1e-6 if dtype == torch.float32 else 2**-5)


def resumed(first: dict[str, Any], then: dict[str, Any]) -> tuple[list[nn.Parameter], Optimizer]:
    """Takes three steps with one configuration, saves, and takes three more with an optimizer built from another."""
    weights = parameters()
    before = build_optimizer(options(optimizer="torch-adamw", optimizer_config=first), weights)
    take_steps(before, weights, range(3))
    document, tensors = pack_optimizer(before, NAMES)
    after = build_optimizer(options(optimizer="torch-adamw", optimizer_config=then), weights)
    unpack_optimizer(after, NAMES, json.loads(json.dumps(document)), {key: value.clone() for key, value in tensors.items()})
    take_steps(after, weights, range(3, 6))
    return weights, after


def test_a_run_that_began_without_the_fused_kernel_continues_with_the_same_bits() -> None:
    plain = parameters()
    take_steps(build_optimizer(options(optimizer="torch-adamw", optimizer_config={"fused": None}), plain), plain, range(6))
    weights, optimizer = resumed({"fused": None}, {})
    assert not optimizer.param_groups[0]["fused"]
    assert all(torch.equal(one, other) for one, other in zip(weights, plain, strict=True))


def test_a_resumed_run_uses_the_kernel_that_its_options_choose() -> None:
    weights, optimizer = resumed({}, {"fused": False})
    assert optimizer.param_groups[0]["fused"] is False and all(bool(weight.isfinite().all()) for weight in weights)
    assert resumed({}, {})[1].param_groups[0]["fused"] is True


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


def test_packing_refuses_a_value_that_is_neither_json_nor_a_tensor() -> None:
    with pytest.raises(TypeError, match="root.a holds a object"):
        pack({"a": object()}, {}, "root")


@pytest.mark.parametrize("document", [{"tensor": "t", "more": 1}, {"other": []}])
def test_unpacking_refuses_a_document_that_is_no_packed_state(document: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="no packed state"):
        unpack(document, {})


@pytest.mark.parametrize("worst", [float("nan"), float("inf"), -float("inf")])
def test_all_finite_finds_one_bad_number_anywhere(worst: float) -> None:
    good = [torch.ones(3), torch.zeros(2, 2)]
    assert all_finite(good) and all_finite([])
    good[1][1, 0] = worst
    assert not all_finite(good)


def test_each_group_of_parameters_has_a_learning_rate_of_its_own() -> None:
    optimizer = build_optimizer(options(), parameters(), parameters())
    set_learning_rates(optimizer, [0.5, 0.25])
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.25]
    with pytest.raises(ValueError, match="shorter"):
        set_learning_rates(optimizer, [0.5])


@pytest.mark.parametrize("name", ON_A_CPU)
def test_every_optimizer_moves_each_group_at_its_rate(name: str) -> None:
    """A rate of zero leaves the second group where it is."""
    moved, kept = parameters(), parameters()
    optimizer = build_optimizer(options(optimizer=name), moved, kept)
    start_training(optimizer)
    before = [[weight.detach().clone() for weight in group] for group in (moved, kept)]
    for step in range(3):
        for weight in (*moved, *kept):
            weight.grad = torch.full_like(weight, 0.5 + step)
        set_learning_rates(optimizer, [0.01, 0.0])
        optimizer.step()
    assert all(not torch.equal(weight, old) for weight, old in zip(moved, before[0], strict=True))
    assert all(torch.equal(weight, old) for weight, old in zip(kept, before[1], strict=True))


def test_options_of_adam_are_arguments_where_the_optimizer_has_them() -> None:
    chosen = options(optimizer="torch-adamw", adam_epsilon=1e-5, adam_weight_decay=0.0, adam_beta1=0.8)
    group = build_optimizer(chosen, parameters()).param_groups[0]
    assert (group["eps"], group["weight_decay"], group["betas"]) == (1e-5, 0.0, (0.8, 0.999))
    lion = build_optimizer(options(optimizer="optimi-lion", adam_epsilon=1e-5, adam_beta2=0.9), parameters()).param_groups[0]
    assert "eps" not in lion and tuple(lion[name] for name in ("beta1", "beta2")) == (0.9, 0.9)


def test_the_options_of_the_optimizer_override_those_of_adam() -> None:
    chosen = options(
        optimizer="torch-adamw",
        adam_epsilon=1e-5,
        adam_weight_decay=0.5,
        adam_beta1=0.8,
        adam_beta2=0.9,
        optimizer_beta1=0.7,
        optimizer_beta2=0.6,
        optimizer_config={"eps": 1e-4, "weight_decay": 0.25},
    )
    group = build_optimizer(chosen, parameters()).param_groups[0]
    assert (group["eps"], group["weight_decay"], group["betas"]) == (1e-4, 0.25, (0.7, 0.6))


def test_an_optimizer_without_betas_keeps_its_arguments() -> None:
    assert options(optimizer="torch-sgd", adam_beta1=0.8).betas is None
    build_optimizer(options(optimizer="torch-sgd", adam_beta1=0.8, adam_epsilon=1e-5), parameters())


@pytest.mark.parametrize(
    ("values", "factor"), [({}, 1.0), ({"lr_scale": True}, 16.0), ({"lr_scale_sqrt": True}, 4.0)], ids=["plain", "linear", "root"]
)
def test_the_rate_is_scaled_by_the_samples_of_a_step(values: dict[str, Any], factor: float) -> None:
    assert options(**values).rate_factor(16) == factor


def rates_of_prodigy(steps: int, **options: Any) -> list[float]:
    """The rate d after each step on a quadratic whose gradients keep their direction."""
    weight = nn.Parameter(torch.full((4,), 5.0))
    optimizer = build_optimizer(OptimizerOptions(optimizer="prodigy", learning_rate=1.0, **options), [weight])
    found = []
    for _ in range(steps):
        weight.grad = 2 * weight.detach()
        optimizer.step()
        found.append(optimizer.param_groups[0]["d"])
    return found


@pytest.mark.parametrize("config", [{}, {"d_coef": 2.0}])
def test_prodigy_keeps_its_rate_after_its_steps_and_looks_for_it_as_usual_before(config: dict[str, Any]) -> None:
    usual, limited = rates_of_prodigy(12, optimizer_config=config), rates_of_prodigy(12, optimizer_config=config, prodigy_steps=6)
    assert limited[:6] == usual[:6] and len(set(usual)) > 8
    assert set(limited[5:]) == {usual[5]}


def test_prodigy_keeps_its_first_rate_if_no_step_has_raised_it() -> None:
    weight = nn.Parameter(torch.ones(2))
    optimizer = build_optimizer(OptimizerOptions(optimizer="prodigy", learning_rate=1.0, prodigy_steps=1), [weight])
    first = optimizer.param_groups[0]["d"]
    for sign in (1.0, -1.0, 1.0, -1.0):
        weight.grad = torch.full((2,), 1e-3 * sign)
        optimizer.step()
    assert optimizer.param_groups[0]["d"] == first


def test_validate_notes_steps_of_prodigy_for_another_optimizer() -> None:
    given = {**options_with(optimizer="torch-adamw").as_values(), "prodigy_steps": 100}
    assert ("prodigy_steps", "no_effect") in [(problem.option, problem.code) for problem in check_options(given)[1]]
    given = {**given, "optimizer": "prodigy", "learning_rate": 1.0}
    assert "prodigy_steps" not in [problem.option for problem in check_options(given)[1]]
