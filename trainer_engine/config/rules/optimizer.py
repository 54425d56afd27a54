"""Rules of the optimizer: its arguments, betas and gradient clipping."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

from trainer_engine.config.families import find_spec
from trainer_engine.config.options.optimizer import ARGUMENTS, READS_EVERY_TENSOR, SCHEDULE_FREE, WITHOUT_BETAS
from trainer_engine.config.options.registry import Rule, Values
from trainer_engine.contract.errors import Problem

SMALLEST_PRODIGY_RATE = 0.1


def betas_come_together(values: Values) -> Iterator[Problem]:
    for name, other in (("optimizer_beta1", "optimizer_beta2"), ("optimizer_beta2", "optimizer_beta1")):
        if values[name] is None and values[other] is not None:
            yield Problem.error(name, "incomplete", f"{other} is given without {name}.", expected="both or neither")


def optimizer_takes_its_arguments(values: Values) -> Iterator[Problem]:
    optimizer = values["optimizer"]
    allowed = ARGUMENTS.get(optimizer)
    if allowed is None:
        return
    for name, value in values["optimizer_config"].items():
        if name not in allowed:
            message, expected = f"{optimizer} has no argument {name!r}.", f"one of {', '.join(sorted(allowed))}"
            yield Problem.error("optimizer_config", "unknown_argument", message, got=name, expected=expected)
        elif value is not None and not (isinstance(value, bool) if allowed[name] is bool else _is_not_negative(value)):
            expected = "true or false" if allowed[name] is bool else "a number that is not negative"
            yield Problem.error("optimizer_config", "bad_argument", f"{name} is not {expected}.", got=value, expected=f"{name}={expected}")


def _is_not_negative(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value >= 0


def adamw_keeps_float32(values: Values) -> Iterator[Problem]:
    if values["optimizer"] == "adamw_bf16" and values["mixed_precision"] != "bf16":
        message = f"With mixed_precision={values['mixed_precision']} the weights stay float32, and adamw_bf16 works on them as plain AdamW."
        yield Problem.note("optimizer", "works_as_adamw", message, got="adamw_bf16")


def clipping_is_gentle(values: Values) -> Iterator[Problem]:
    family_spec = find_spec(str(values.get("model_family", "")))
    default = family_spec.defaults_of(values.get("model_flavour")).get("max_grad_norm") if family_spec else None
    if default is not None and (values["max_grad_norm"] == 0 or values["max_grad_norm"] > default):
        message = f"max_grad_norm={values['max_grad_norm']:g} is looser than this family's {default:g}, which keeps its training stable."
        yield Problem.note("max_grad_norm", "looser_than_family", message, got=values["max_grad_norm"])


def optimizer_follows_its_options(values: Values) -> Iterator[Problem]:
    """Reports options that the optimizer ignores, an optimizer that slows a GPU down, and one whose library is not installed."""
    chosen = values["optimizer"]
    if chosen in READS_EVERY_TENSOR:
        message = f"{chosen} reads a value from the device for every weight tensor in every step, and a GPU waits each time."
        yield Problem.note("optimizer", "reads_every_tensor", message, got=chosen, hint="torch-adamw and adamw_bf16 do not")
    if chosen in WITHOUT_BETAS and values["optimizer_beta1"] is not None:
        yield Problem.note("optimizer_beta1", "no_effect", f"{chosen} has no betas.", got=values["optimizer_beta1"])
    if chosen in SCHEDULE_FREE and values["lr_scheduler"] not in ("constant", "constant_with_warmup"):
        message = f"{chosen} replaces the schedule: the learning rate stays at its peak after the warm-up."
        yield Problem.note("lr_scheduler", "no_effect", message, got=values["lr_scheduler"])
    if chosen == "prodigy" and values["learning_rate"] < SMALLEST_PRODIGY_RATE:
        message = f"prodigy finds the learning rate itself and multiplies it by learning_rate={values['learning_rate']:g}."
        yield Problem.note("learning_rate", "usually_one", message, got=values["learning_rate"], hint="use learning_rate=1")
    if chosen.startswith("bnb-") and importlib.util.find_spec("bitsandbytes") is None:
        message = f"{chosen} needs the library bitsandbytes, which is not installed here."
        yield Problem.error(
            "optimizer", "not_installed", message, got=chosen, expected="another optimizer", hint="pip install bitsandbytes"
        )


RULES: tuple[Rule, ...] = (
    betas_come_together,
    optimizer_takes_its_arguments,
    adamw_keeps_float32,
    clipping_is_gentle,
    optimizer_follows_its_options,
)
