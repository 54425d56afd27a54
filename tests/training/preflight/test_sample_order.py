"""validate says what the engine will say about the order of samples when it resumes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from environments.paths import Home
from environments.resolve.run import resolve_run
from tests.training.api.test_reads import write_checkpoint
from tests.training.conftest import Training
from tests.training.preflight.test_engine_refusals import IDENTITY, NO_GPU
from trainer_engine.config.resuming.identity import ORDER_KEY, ORDER_VERSION
from training.preflight.run import examine_run


def notes_on_order(training: Training, state: dict[str, Any]) -> list[str]:
    folder = write_checkpoint(training.home / "output" / "run", 20)
    (folder / "training_state.json").write_text(json.dumps({"identity": IDENTITY, **state}))
    home, form = Home(training.home), {name: value for name, value in training.form.items() if not name.startswith("__")}
    report = examine_run(resolve_run(home, {}, {**form, "--resume_from_checkpoint": "checkpoint-20"}), home, NO_GPU)
    return [problem.message for problem in report.notes if problem.code == "order_changed"]


@pytest.mark.parametrize("state", [{}, {ORDER_KEY: ORDER_VERSION + 1}])
def test_a_checkpoint_of_another_order_is_noted(training: Training, state: dict[str, int]) -> None:
    [message] = notes_on_order(training, state)
    assert "some samples are seen twice" in message


def test_a_checkpoint_of_this_order_is_not_mentioned(training: Training) -> None:
    assert notes_on_order(training, {ORDER_KEY: ORDER_VERSION}) == []
