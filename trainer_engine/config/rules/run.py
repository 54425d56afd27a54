"""Rules of the length of a run and its learning-rate schedule."""

from __future__ import annotations

from collections.abc import Iterator

from trainer_engine.config.options.registry import Rule, Values
from trainer_engine.contract.errors import Problem


def run_has_a_length(values: Values) -> Iterator[Problem]:
    steps, epochs = values["max_train_steps"], values["num_train_epochs"]
    if not steps and not epochs:
        message = "The run has no length: max_train_steps and num_train_epochs are both 0."
        yield Problem.error("max_train_steps", "no_length", message, got=0, expected="one of the two above 0")
    if steps and epochs:
        message = f"max_train_steps={steps} and num_train_epochs={epochs} contradict each other."
        hint = "set num_train_epochs to 0 to count steps, or max_train_steps to 0 to count epochs"
        yield Problem.error("num_train_epochs", "two_lengths", message, got=epochs, expected="exactly one of the two above 0", hint=hint)


def warmup_fits(values: Values) -> Iterator[Problem]:
    warmup, total = values["lr_warmup_steps"], values["max_train_steps"]
    if total and warmup > total:
        message = f"{warmup} warm-up steps in a run of {total}: the peak learning rate is never reached."
        yield Problem.note("lr_warmup_steps", "longer_than_run", message, got=warmup, hint=f"use {total // 10} or less")


def floor_is_below_peak(values: Values) -> Iterator[Problem]:
    floor, peak = values["lr_end"], values["learning_rate"]
    if values["lr_scheduler"] == "polynomial" and floor >= peak:
        message = f"The polynomial schedule decays from learning_rate={peak:g} to lr_end={floor:g}, which is not below it."
        yield Problem.error("lr_end", "not_below_peak", message, got=floor, expected=f"less than {peak:g}")


RULES: tuple[Rule, ...] = (
    run_has_a_length,
    warmup_fits,
    floor_is_below_peak,
)
