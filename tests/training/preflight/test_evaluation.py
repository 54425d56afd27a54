"""What is said of evaluations before a run starts."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.helpers.pictures import generate_images
from tests.training.conftest import Training


@pytest.fixture
def held_out(training: Training) -> Training:
    """With ten images held out."""
    generate_images(training.home / "held-out", count=10, size=(128, 96))
    path = training.home / "config" / "datasets.json"
    entry = {"id": "held-out", "dataset_type": "eval", "instance_data_dir": "held-out", "resolution": 64, "resolution_type": "pixel"}
    path.write_text(json.dumps([*json.loads(path.read_text()), entry]))
    return training


def reported(training: Training, **changes: Any) -> tuple[dict[str, Any], dict[str, str]]:
    """(what was understood, option -> code of errors, warnings and notes)."""
    form = {**training.form, **{f"--{name}": value for name, value in changes.items()}}
    answer = training.post("/validate", form).json()
    problems = [one for key in ("problems", "warnings", "notes") for one in answer.get(key) or [] if isinstance(one, dict)]
    return answer["understood"], {one["option"]: one["code"] for one in problems if one["option"].startswith(("eval", "early"))}


def test_sets_and_cost_are_reported(held_out: Training) -> None:
    understood, _ = reported(held_out, eval_steps_interval="10", checkpoint_step_interval="15", num_eval_images="6", train_batch_size="2")
    evaluation = understood["evaluation"]
    assert (evaluation["images"], evaluation["timesteps"], evaluation["forward_passes"]) == (6, 28, 168)
    assert (evaluation["evaluations"], evaluation["in_steps"]) == (4, 28.0)  # before the first step, at 10, 15 and 20
    assert evaluation["text"] == "6 images at 28 timesteps: 168 forward passes, about as long as 28 steps; 4 times in this run"
    assert [one["id"] for one in understood["eval_datasets"]] == ["held-out"]
    assert understood["eval_datasets"][0]["usable"] == 10 and understood["steps"] == 20


def test_without_eval_sets_there_is_nothing_to_report(training: Training) -> None:
    understood, problems = reported(training, eval_steps_interval="10")
    assert understood["evaluation"] is None and problems == {"eval_steps_interval": "no_eval_set"}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"eval_timesteps": "1", "num_eval_images": "1"}, {"eval_steps_interval": "no_interval"}),
        ({"eval_timesteps": "1", "eval_epoch_interval": "4", "num_eval_images": "1"}, {"eval_epoch_interval": "longer_than_run"}),
        ({"eval_steps_interval": "1"}, {"eval_timesteps": "evaluations_take_long"}),
        ({"eval_steps_interval": "20", "eval_dataset_id": "dogs"}, {"eval_dataset_id": "unknown_dataset"}),
        ({"eval_loss_disable": "true"}, {}),
    ],
)
def test_validate_reports_mistakes_of_eval_sets(held_out: Training, options: dict[str, str], expected: dict[str, str]) -> None:
    assert reported(held_out, **options)[1] == expected


def test_a_run_of_very_many_steps_is_counted_without_listing_them(held_out: Training) -> None:
    steps = 10**17
    understood, _ = reported(held_out, eval_steps_interval="1", checkpoint_step_interval="1", max_train_steps=str(steps))
    assert understood["evaluation"]["evaluations"] == steps + 1
