"""Networks that share a noise schedule: each is trained and evaluated on its part of it, and on nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.models import options_with, tiny_model
from tests.helpers.resuming import assert_resumes_exactly
from tests.helpers.tiny_run import train_here, with_held_out
from tests.trainer_engine.families.sdxl.test_family import tiny_sdxl
from tests.trainer_engine.objectives.test_timestep_bias import COUNT, SCHEDULER, objective
from trainer_engine.batches.batch import Batch
from trainer_engine.config.families import specs
from trainer_engine.config.options.model import ObjectiveOptions
from trainer_engine.config.parse import check_options
from trainer_engine.config.rules.noise_schedule import schedule_problems
from trainer_engine.contract.errors import InvalidOptions, Level
from trainer_engine.loop.step import Step
from trainer_engine.objectives.build import make_objective
from trainer_engine.objectives.randomness import sample_generators

SECOND = {"refiner_training": True, "refiner_training_strength": 0.35}
FIRST = {**SECOND, "refiner_training_invert_schedule": True}


def sampled(count: int = 2000, **options: Any) -> torch.Tensor:
    return objective(**options).sample_timesteps(sample_generators(3, 0, range(count)), 1)


@pytest.mark.parametrize(("options", "part"), [(SECOND, range(350)), (FIRST, range(350, 1000)), ({}, range(1000))])
def test_every_timestep_of_the_part_comes_as_often_and_no_other(options: dict[str, Any], part: range) -> None:
    found = sampled(20_000, **options)
    assert set(found.tolist()) <= set(part) and found.min() < part.start + 20 and found.max() >= part.stop - 20
    quarter = len(part) // 4
    counts = torch.histc(found.float(), bins=4, min=part.start, max=part.start + 4 * quarter)
    assert torch.allclose(counts / counts.sum(), torch.full((4,), 0.25), atol=0.02)


def test_the_two_parts_are_the_whole_schedule_and_overlap_nowhere() -> None:
    for strength in (0.001, 0.29, 0.35, 0.57, 0.999):
        first, second = (
            ObjectiveOptions(**{**options, "refiner_training_strength": strength}).trained_part(COUNT) for options in (FIRST, SECOND)
        )
        assert [*second, *first] == list(range(COUNT))


def test_without_a_part_timesteps_are_those_of_earlier_versions() -> None:
    generators = sample_generators(3, 0, range(20))
    assert sampled(20).tolist() == [int(torch.randint(COUNT, (1,), generator=one)) for one in generators]


def test_a_bias_counts_inside_the_part() -> None:
    bias = {"timestep_bias_strategy": "range", "timestep_bias_begin": 300, "timestep_bias_end": 500, "timestep_bias_multiplier": 9.0}
    found = sampled(8000, **SECOND, **bias)
    assert found.max() < 350
    share = (found >= 300).float().mean().item()
    assert share == pytest.approx(9 * 50 / (9 * 50 + 300), abs=0.02)


def test_a_bias_outside_the_part_changes_nothing() -> None:
    outside = {"timestep_bias_strategy": "later", "timestep_bias_multiplier": 9.0}
    assert torch.equal(sampled(50, **SECOND, **outside), sampled(50, **SECOND))


def test_evaluations_spread_over_the_part() -> None:
    assert objective(**SECOND).spread_timesteps(5).tolist() == [35, 105, 175, 245, 315]
    assert objective(**FIRST).spread_timesteps(1).tolist() == [675]
    assert objective(**SECOND).is_partial and not objective().is_partial


@pytest.mark.parametrize("options", [{**SECOND, "refiner_training_strength": 0.0001}, {**FIRST, "refiner_training_strength": 0.9999}])
def test_a_part_without_a_timestep_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidOptions, match="leaves no timestep"):
        make_objective("epsilon", SCHEDULER, ObjectiveOptions(**options))


def test_a_run_trains_on_its_part_alone_and_resumes_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    usual_loss = Step.loss

    def loss(step: Step, batch: Batch) -> torch.Tensor:
        seen.extend(batch.timesteps.tolist())
        return usual_loss(step, batch)

    monkeypatch.setattr(Step, "loss", loss)
    assert_resumes_exactly(tmp_path, after=3, max_train_steps=6, **{**FIRST, "refiner_training_strength": 0.9})
    assert len(seen) == 24 and min(seen) >= 900, "both runs, each of six steps with two samples"


def test_evaluations_of_another_part_are_not_compared(tmp_path: Path) -> None:
    datasets = with_held_out(tmp_path, images=1)
    usual = {"datasets": datasets, "eval_steps_interval": 1, "eval_timesteps": 2, "output_dir": str(tmp_path / "output")}
    train_here(tmp_path, max_train_steps=1, **usual)
    again = train_here(tmp_path, max_train_steps=2, **usual, **SECOND)
    assert "evaluations_changed" in [getattr(event, "code", "") for event in again.heard.events]


def test_a_refiner_is_trained_on_the_least_noise_unless_the_run_says_otherwise() -> None:
    folder = tiny_model("sdxl", refiner=True)

    def part(**options: Any) -> range:
        family = tiny_sdxl(model=folder, **{"model_flavour": "refiner-1.0", **options})
        return family.objective_options.trained_part(COUNT)

    assert part() == range(200)
    assert part(refiner_training_strength=0.3) == range(300)
    assert part(sdxl_refiner_uses_full_range=True) == range(COUNT)
    assert part(**FIRST) == range(350, COUNT)
    assert part(refiner_training=False) == part(**FIRST, sdxl_refiner_uses_full_range=True) == range(COUNT)
    assert tiny_sdxl().objective_options.trained_part(COUNT) == range(COUNT)


def test_preflight_and_engine_refuse_a_part_without_a_timestep_of_the_model() -> None:
    options, spec = options_with(**{**SECOND, "refiner_training_strength": 0.004}), specs()["pixart_sigma"]
    assert [problem.code for problem in schedule_problems(options, spec, {"num_train_timesteps": 100})] == ["empty_range"]
    assert list(schedule_problems(options, spec, {"num_train_timesteps": 1000})) == []
    assert list(schedule_problems(options, spec, {})) == []


def found(family: str = "sdxl", **values: Any) -> set[tuple[str, str, Level]]:
    usual = {name: value for name, value in options_with(model_family=family).as_values().items() if name != "refiner_training"}
    given = {**usual, **values}
    return {(problem.option, problem.code, problem.level) for problem in check_options(given)[1]}


@pytest.mark.parametrize(
    ("family", "values", "problem"),
    [
        ("flux", SECOND, ("refiner_training", "not_for_family", Level.ERROR)),
        ("sdxl", {**SECOND, "refiner_training_strength": 0}, ("refiner_training_strength", "empty_range", Level.ERROR)),
        ("sdxl", {**FIRST, "refiner_training_strength": 1}, ("refiner_training_strength", "empty_range", Level.ERROR)),
        ("sdxl", {**SECOND, "refiner_training_strength": 1.1}, ("refiner_training_strength", "out_of_range", Level.ERROR)),
        ("sdxl", {**SECOND, "validation_disable": False}, ("refiner_training", "trained_in_part", Level.NOTE)),
        ("sdxl", {"refiner_training_strength": 0.5}, ("refiner_training_strength", "no_effect", Level.NOTE)),
        ("sdxl", {"refiner_training_invert_schedule": True}, ("refiner_training_invert_schedule", "no_effect", Level.NOTE)),
        ("sdxl", {"sdxl_refiner_uses_full_range": True}, ("sdxl_refiner_uses_full_range", "no_effect", Level.NOTE)),
        (
            "sdxl",
            {"model_flavour": "refiner-1.0", "refiner_training": True, "refiner_training_strength": 0},
            ("refiner_training_strength", "empty_range", Level.ERROR),
        ),
    ],
)
def test_validate_names_parts_that_cannot_be_trained_or_do_nothing(family: str, values: dict[str, Any], problem: Any) -> None:
    assert problem in found(family, **values)


@pytest.mark.parametrize(
    "values",
    [
        {**FIRST, "validation_disable": True},
        {"model_flavour": "refiner-1.0", "refiner_training_strength": 0.3},
        {"model_flavour": "refiner-1.0", "sdxl_refiner_uses_full_range": True},
    ],
)
def test_validate_accepts_parts_that_can_be_trained(values: dict[str, Any]) -> None:
    names = {option for option, _, _ in found("sdxl", **values)}
    assert not {name for name in names if "refiner" in name}
