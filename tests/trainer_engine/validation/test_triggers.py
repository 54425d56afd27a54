"""When a run validates, as tables."""

from __future__ import annotations

from typing import Any

import pytest

from trainer_engine.config.options.validation import ValidationOptions
from trainer_engine.validation.triggers import Trigger, TriggerState, after_step, at_end, at_start

BASE, STARTUP, INTERVAL, ASKED, RESULT = Trigger
STEPS_PER_EPOCH = 4


def moment(step: int, *, of: int = 100, should_stop: bool = False) -> TriggerState:
    epoch = max(0, step - 1) // STEPS_PER_EPOCH + 1
    return TriggerState(step, epoch, step % STEPS_PER_EPOCH == 0, step >= of, should_stop)


def scheduled(last: int = 12, **values: Any) -> list[int]:
    options = ValidationOptions(**values)
    return [step for step in range(1, last + 1) if after_step(options, moment(step), asked=False) is INTERVAL]


@pytest.mark.parametrize(
    ("values", "steps"),
    [
        ({"validation_step_interval": 5}, [5, 10]),
        ({"validation_step_interval": 100}, []),
        ({"validation_step_interval": 0}, []),
        ({"validation_step_interval": 0, "validation_epoch_interval": 2}, [8]),
        ({"validation_step_interval": 1, "validate_after_step": 10}, [10, 11, 12]),
        ({"validation_step_interval": 5, "validate_after_step": 6}, [10]),
        ({"validation_step_interval": 3, "validate_after_epoch": 2}, [6, 9, 12]),
        ({"validation_step_interval": 3, "validate_after_epoch": 3}, [9, 12]),
        ({"validation_step_interval": 6, "validate_after_step": 0, "validate_after_epoch": 0}, [6, 12]),
        ({"validation_step_interval": 100, "validation_epoch_interval": 1}, [4, 8, 12]),
        ({"validation_step_interval": 100, "validation_epoch_interval": 2}, [8]),
        ({"validation_step_interval": 6, "validation_epoch_interval": 1}, [4, 6, 8, 12]),
        ({"validation_step_interval": 100, "validation_epoch_interval": 1, "validate_after_epoch": 2}, [8, 12]),
        ({"validation_step_interval": 1, "validate_after_step": 4, "validate_after_epoch": 3}, [9, 10, 11, 12]),
    ],
)
def test_intervals_count_steps_and_epochs_from_their_start_step(values: dict[str, Any], steps: list[int]) -> None:
    assert scheduled(**values) == steps


@pytest.mark.parametrize(
    ("step", "of", "should_stop", "asked", "expected"),
    [
        (1, 100, False, True, ASKED),  # before validate_after_step
        (10, 100, False, True, ASKED),  # at an interval: once, not twice
        (10, 100, False, False, INTERVAL),
        (10, 10, False, True, None),  # images of the result replace it
        (10, 10, False, False, None),
        (10, 100, True, True, None),  # a run that is to stop does not begin to draw
    ],
)
def test_a_requested_validation_comes_at_any_interval(step: int, of: int, should_stop: bool, asked: bool, expected: Trigger | None) -> None:
    options = ValidationOptions(validation_step_interval=5, validate_after_step=5)
    assert after_step(options, moment(step, of=of, should_stop=should_stop), asked=asked) is expected


@pytest.mark.parametrize(
    ("values", "step", "of", "expected"),
    [
        ({}, 0, 100, (BASE,)),
        ({"disable_benchmark": True}, 0, 100, ()),
        ({"validation_on_startup": True}, 0, 100, (BASE, STARTUP)),
        ({"validation_on_startup": True, "disable_benchmark": True}, 0, 100, (STARTUP,)),
        ({"validation_on_startup": True, "validate_after_step": 50}, 0, 100, (BASE, STARTUP)),
        ({}, 5, 100, ()),  # going on from step 5, whose validation is there or is not missed
        ({"validation_on_startup": True}, 5, 100, (STARTUP,)),
        ({"validation_on_startup": True}, 100, 100, ()),
    ],
)
def test_a_start_generates_with_the_base_model_once_unless_more_are_set(
    values: dict[str, Any], step: int, of: int, expected: tuple[Trigger, ...]
) -> None:
    assert at_start(ValidationOptions(**values), moment(step, of=of)) == expected


def test_a_finished_run_generates_with_its_result() -> None:
    assert at_end(moment(10, of=10)) is RESULT
    assert at_end(moment(9, of=10)) is None
