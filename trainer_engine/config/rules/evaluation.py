"""What the options of evaluation must keep together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from trainer_engine.contract.errors import Problem

Values = Mapping[str, Any]
INTERVALS = ("eval_steps_interval", "eval_epoch_interval")


def evaluations_fit_the_run(values: Values) -> Iterator[Problem]:
    steps, epochs = (values[name] for name in INTERVALS)
    if steps and epochs:
        message = f"Evaluations run every {steps} steps and every {epochs:g} epochs as well."
        yield Problem.note("eval_epoch_interval", "two_intervals", message, got=epochs)
    if steps and values["max_train_steps"] and steps > values["max_train_steps"]:
        yield _never("eval_steps_interval", steps, f"{values['max_train_steps']} steps")
    if epochs and values["num_train_epochs"] and epochs > values["num_train_epochs"]:
        yield _never("eval_epoch_interval", epochs, f"{values['num_train_epochs']} epochs")


def _never(name: str, interval: float, length: str) -> Problem:
    message = f"{name}={interval:g} is longer than the run of {length}: it is evaluated before it and at its checkpoints alone."
    return Problem.note(name, "longer_than_run", message, got=interval)


def early_stop_has_evaluations(values: Values) -> Iterator[Problem]:
    patience = values["early_stop_patience"]
    if values["early_stop_min_delta"] and not patience:
        message = "early_stop_patience is 0: no run ends early."
        yield Problem.note("early_stop_min_delta", "no_effect", message, got=values["early_stop_min_delta"])
    if not patience:
        return
    if values["eval_loss_disable"]:
        message = "eval_loss_disable turns off what early_stop_patience waits for."
        yield Problem.error("early_stop_patience", "needs_evaluations", message, got=patience, expected="0, or eval_loss_disable=false")
    elif not any(values[name] for name in INTERVALS):
        message = "early_stop_patience counts evaluations at an interval, and none is set."
        yield Problem.error("early_stop_patience", "needs_interval", message, got=patience, expected="0, or eval_steps_interval as well")
