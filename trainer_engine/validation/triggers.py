"""When a run validates: a function from plain numbers to a trigger."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from trainer_engine.config.options.validation import ValidationOptions


class Trigger(str, Enum):
    """Why a validation takes place."""

    BASE_MODEL = "base_model"
    """Before the first step of a run: images of the base model."""
    STARTUP = "startup"
    """Before the first step of this start."""
    INTERVAL = "interval"
    ASKED = "asked"
    RESULT = "result"
    """After the last step."""


@dataclass(frozen=True)
class TriggerState:
    """How far a run is, between two steps."""

    step: int
    """Optimizer steps done."""
    epoch: int
    """Of the last step done, from 1."""
    ends_epoch: bool
    is_finished: bool
    should_stop: bool = False


def at_start(options: ValidationOptions, moment: TriggerState) -> tuple[Trigger, ...]:
    """Before the first step of this start, in order. A resumed run has images of its base model already; one with no step left
    generates those of its result anyway."""
    base_model = [Trigger.BASE_MODEL] if not moment.step and not options.disable_benchmark else []
    startup = [Trigger.STARTUP] if options.validation_on_startup and not moment.is_finished else []
    return (*base_model, *startup)


def after_step(options: ValidationOptions, moment: TriggerState, *, asked: bool) -> Trigger | None:
    """After a step of this start, so never at the step that a run goes on from. The last step's validation is the result's."""
    if moment.should_stop or moment.is_finished:
        return None
    if asked:
        return Trigger.ASKED
    epochs = options.validation_epoch_interval
    at_epoch = epochs is not None and moment.ends_epoch and moment.epoch % epochs == 0
    steps = options.validation_step_interval
    at_interval = at_epoch or (steps > 0 and moment.step % steps == 0)
    begun = moment.step >= (options.validate_after_step or 0) and moment.epoch >= (options.validate_after_epoch or 0)
    return Trigger.INTERVAL if at_interval and begun else None


def at_end(moment: TriggerState) -> Trigger | None:
    """A run that was stopped goes on later, and has no result yet."""
    return Trigger.RESULT if moment.is_finished else None
