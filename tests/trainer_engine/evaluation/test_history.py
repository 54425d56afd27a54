"""What follows from the evaluations of a run: the lowest loss, and when to end."""

from __future__ import annotations

import json

import pytest

from trainer_engine.config.options.evaluation import EvaluationOptions
from trainer_engine.evaluation.history import Evaluation, History


def history(*losses: float | None, at_interval: bool = True) -> History:
    made = History("measure", ("held-out",))
    made.evaluations = [Evaluation(10 * number, at_interval, loss, {"eval_loss/held-out": loss}) for number, loss in enumerate(losses)]
    return made


@pytest.mark.parametrize(
    ("losses", "min_delta", "idle"),
    [
        ((), 0.0, 0),
        ((1.0,), 0.0, 0),
        ((1.0, 0.9, 0.8), 0.0, 0),
        ((1.0, 0.9, 0.9, 0.95), 0.0, 2),
        ((1.0, 1.1, 0.99), 0.0, 0),
        ((1.0, 0.99, 0.98), 0.05, 2),
        ((1.0, 0.97, 0.94), 0.05, 0),
        ((1.0, None, 0.5), 0.0, 0),
        ((1.0, None, None), 0.0, 2),
        ((None, None), 0.0, 1),
    ],
)
def test_evaluations_without_improvement_are_counted(losses: tuple[float | None, ...], min_delta: float, idle: int) -> None:
    assert history(*losses).without_improvement(min_delta) == idle


def test_evaluations_for_checkpoints_do_not_count() -> None:
    assert history(1.0, 2.0, 3.0, at_interval=False).without_improvement(0.0) == 0


def test_a_run_ends_when_patience_does_and_reports_why() -> None:
    patient = EvaluationOptions(eval_steps_interval=10, early_stop_patience=2)
    assert history(1.0, 0.5, 0.6).reason_to_stop(patient) == ""
    reason = history(1.0, 0.5, 0.6, 0.7).reason_to_stop(patient)
    assert reason == "Ended early: no improvement in 2 evaluations; the lowest evaluation loss is 0.5 at step 10."
    assert history(1.0, 0.5, 0.6, 0.7).reason_to_stop(EvaluationOptions()) == ""


def test_the_best_loss_is_finite_and_the_earliest_of_equal_ones() -> None:
    found = history(None, 0.5, 0.4, 0.4).best
    assert found is not None and found.step == 20
    assert history(None).best is None


def test_a_checkpoint_records_only_what_was_measured_of_its_own_weights() -> None:
    made = history(1.0, 0.5)
    assert made.of_checkpoint(10) == {"loss": 0.5, "measure": "measure", "datasets": ["held-out"]}
    assert made.of_checkpoint(11) is None and History().of_checkpoint(0) is None


def test_a_history_is_restored_unless_it_measured_something_else() -> None:
    made = history(1.0, None, 0.123456789012345)
    document = json.loads(json.dumps(made.as_document()))
    again, other = History("measure"), History("other")
    assert again.restore(document) and again.evaluations == made.evaluations
    assert not other.restore(document) and other.evaluations == []
