"""Rules of the optimizer: its arguments, betas and gradient clipping."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from typing import Any

from trainer_engine.config.families import find_spec
from trainer_engine.config.optimizers import OPTIMIZERS
from trainer_engine.config.options.registry import Rule, Values
from trainer_engine.contract.errors import Problem

SMALLEST_FACTOR = 0.1
"""A smaller ``learning_rate`` of an optimizer that finds the rate itself is probably meant as a rate."""


OF_ADAM = {"adam_epsilon": "eps", "adam_weight_decay": "weight_decay"}
"""Option -> the argument of ``optimizer_config`` that it stands for."""


def rate_is_scaled_once(values: Values) -> Iterator[Problem]:
    if values["lr_scale"] and values["lr_scale_sqrt"]:
        message = "lr_scale and lr_scale_sqrt contradict each other."
        yield Problem.error("lr_scale_sqrt", "two_scales", message, got=True, expected="one of the two")


def betas_come_together(values: Values) -> Iterator[Problem]:
    for name, other in (("optimizer_beta1", "optimizer_beta2"), ("optimizer_beta2", "optimizer_beta1")):
        if values[name] is None and values[other] is not None:
            yield Problem.error(name, "incomplete", f"{other} is given without {name}.", expected="both or neither")


def optimizer_takes_its_arguments(values: Values) -> Iterator[Problem]:
    yield from argument_problems(values["optimizer"], values["optimizer_config"])


def argument_problems(optimizer: str, config: Mapping[str, Any]) -> Iterator[Problem]:
    """Yields an error for each argument of ``optimizer_config`` that the optimizer does not have or cannot work with."""
    if optimizer not in OPTIMIZERS:
        return
    allowed = OPTIMIZERS[optimizer].arguments
    for name, value in config.items():
        if name not in allowed:
            message, expected = f"{optimizer} has no argument {name!r}.", f"one of {', '.join(sorted(allowed))}"
            yield Problem.error("optimizer_config", "unknown_argument", message, got=name, expected=expected)
        elif value is not None and not allowed[name].takes(value):
            expected = allowed[name].expected
            yield Problem.error("optimizer_config", "bad_argument", f"{name} is not {expected}.", got=value, expected=f"{name}={expected}")
    for fault, expected in _contradictions(config):
        yield Problem.error("optimizer_config", "bad_argument", fault, got=dict(config), expected=expected)
    if config.get("triton") is True and importlib.util.find_spec("triton") is None:
        message, expected = "triton=true needs the library triton, which is not installed here.", "triton=false"
        yield Problem.error("optimizer_config", "not_installed", message, got="triton=true", expected=expected, hint="pip install triton")


def _contradictions(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields (message, expected values) for arguments that exclude each other."""
    if config.get("fused") is True and config.get("foreach") is True:
        yield "fused and foreach are two kernels, and an update runs in one.", "one of the two"
    if config.get("nesterov") is True and (not config.get("momentum") or config.get("dampening")):
        yield "Nesterov momentum needs momentum, and no dampening.", "momentum=0.9 as well, and dampening=0"


def bfloat16_weights_need_bf16(values: Values) -> Iterator[Problem]:
    note = float32_weights_note(values["optimizer"], values["mixed_precision"])
    if note:
        yield Problem.note("optimizer", "works_as_adamw", note, got=values["optimizer"])


def float32_weights_note(optimizer: str, mixed_precision: str) -> str:
    """Returns a sentence for the user if an optimizer for bfloat16 weights gets float32 weights; otherwise an empty string."""
    if optimizer not in OPTIMIZERS or not OPTIMIZERS[optimizer].stores_bfloat16 or mixed_precision == "bf16":
        return ""
    return f"With mixed_precision={mixed_precision} the weights stay float32, and {optimizer} works on them as plain AdamW."


def clipping_is_gentle(values: Values) -> Iterator[Problem]:
    family_spec = find_spec(str(values.get("model_family", "")))
    default = family_spec.defaults_of(values.get("model_flavour")).get("max_grad_norm") if family_spec else None
    if default is not None and (values["max_grad_norm"] == 0 or values["max_grad_norm"] > default):
        message = f"max_grad_norm={values['max_grad_norm']:g} is looser than this family's {default:g}, which keeps its training stable."
        yield Problem.note("max_grad_norm", "looser_than_family", message, got=values["max_grad_norm"])


def optimizer_options_have_an_effect(values: Values) -> Iterator[Problem]:
    """Notes betas for an update rule without betas, and a curve or a learning rate that the optimizer replaces."""
    chosen = OPTIMIZERS.get(values["optimizer"])
    if chosen is None:
        return
    for name in ("optimizer_beta1", "adam_beta1", "adam_beta2"):
        if chosen.betas is None and values[name] is not None:
            yield Problem.note(name, "no_effect", f"{chosen.name} has no betas: {name} has no effect.", got=values[name])
    for name, argument in OF_ADAM.items():
        if values[name] is not None and argument not in chosen.arguments:
            message = f"{chosen.name} has no argument {argument}: {name} has no effect."
            yield Problem.note(name, "no_effect", message, got=values[name])
        elif values[name] is not None and argument in values["optimizer_config"]:
            message = f"optimizer_config sets {argument}: {name} has no effect."
            yield Problem.note(name, "no_effect", message, got=values[name])
    if values["prodigy_steps"] and not chosen.finds_rate:
        message = f"{chosen.name} does not look for its rate: prodigy_steps has no effect."
        yield Problem.note("prodigy_steps", "no_effect", message, got=values["prodigy_steps"])
    if chosen.is_schedule_free and values["lr_scheduler"] not in ("constant", "constant_with_warmup"):
        message = f"{chosen.name} replaces the schedule: the learning rate stays at its peak after the warm-up."
        yield Problem.note("lr_scheduler", "no_effect", message, got=values["lr_scheduler"])
    if chosen.finds_rate and values["learning_rate"] < SMALLEST_FACTOR:
        message = f"{chosen.name} finds the learning rate itself and multiplies it by learning_rate={values['learning_rate']:g}."
        yield Problem.note("learning_rate", "usually_one", message, got=values["learning_rate"], hint="use learning_rate=1")


def optimizer_suits_the_machine(values: Values) -> Iterator[Problem]:
    """Notes an optimizer that makes a GPU wait; refuses one whose library is not installed."""
    chosen = OPTIMIZERS.get(values["optimizer"])
    if chosen is None:
        return
    if chosen.reads_every_tensor:
        message = f"{chosen.name} reads a value from the device for every weight tensor in every step, and a GPU waits each time."
        yield Problem.note("optimizer", "reads_every_tensor", message, got=chosen.name, hint="torch-adamw and adamw_bf16 do not")
    if chosen.package and importlib.util.find_spec(chosen.package) is None:
        message = f"{chosen.name} needs the library {chosen.package}, which is not installed here."
        hint = f"pip install {chosen.package}"
        yield Problem.error("optimizer", "not_installed", message, got=chosen.name, expected="another optimizer", hint=hint)


RULES: tuple[Rule, ...] = (
    betas_come_together,
    rate_is_scaled_once,
    optimizer_takes_its_arguments,
    bfloat16_weights_need_bf16,
    clipping_is_gentle,
    optimizer_options_have_an_effect,
    optimizer_suits_the_machine,
)
