"""Distributions of the timesteps of flow matching: curves through densities, and the four timesteps of fast samplers."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.models import options_with, tiny_model
from tests.helpers.resuming import assert_resumes_exactly
from trainer_engine.config.options.model import ObjectiveOptions
from trainer_engine.config.options.timesteps import parse_densities
from trainer_engine.config.parse import check_options
from trainer_engine.contract.errors import Level
from trainer_engine.objectives.build import make_objective
from trainer_engine.objectives.cubic_schedule import CubicSchedule
from trainer_engine.objectives.randomness import sample_generators

DENSITY = st.floats(0.0, 100.0).map(lambda value: round(value, 3))


def sampled(count: int = 4000, **options: Any) -> torch.Tensor:
    objective = make_objective("flow_matching", {}, ObjectiveOptions(**{"flow_schedule_shift": 0.0, **options}))
    return objective.sample_timesteps(sample_generators(7, 0, range(count), "timestep"), 256)


def density(schedule: CubicSchedule) -> np.ndarray[Any, Any]:
    """The density between the points of the grid."""
    return np.diff(schedule.cumulative) / np.diff(schedule.grid)


@given(st.lists(DENSITY, min_size=2, max_size=12).filter(lambda values: sum(values) > 1))
def test_a_curve_goes_through_its_densities_and_never_beyond_their_neighbours(values: list[float]) -> None:
    schedule = CubicSchedule(values)
    curve = density(schedule)
    knots = np.linspace(0, len(curve) - 1, len(values)).round().astype(int)
    scale = curve.max() / max(values)
    assert np.allclose(curve[knots], np.asarray(values) * scale, atol=0.02 * max(values) * scale)
    for left, right, low, high in zip(knots, knots[1:], values, values[1:], strict=False):
        inside = curve[left : right + 1] / scale
        assert inside.min() >= min(low, high) - 0.02 * max(values) and inside.max() <= max(low, high) + 0.02 * max(values)


def test_two_densities_are_a_straight_line() -> None:
    schedule = CubicSchedule([0, 2])
    assert [schedule.at(share) for share in (0.0, 0.25, 1.0)] == pytest.approx([0.0, 0.5, 1.0], abs=1e-6)


def test_equal_densities_are_uniform_and_a_symmetric_curve_has_its_middle_in_the_middle() -> None:
    assert [CubicSchedule([3, 3, 3]).at(share) for share in (0.1, 0.9)] == pytest.approx([0.1, 0.9], abs=1e-9)
    assert CubicSchedule([1, 5, 1]).at(0.5) == pytest.approx(0.5, abs=1e-9)


@pytest.mark.parametrize("scale", [1e-300, 1e-3, 1e305])
def test_only_the_ratio_of_densities_counts(scale: float) -> None:
    shares = [0.1, 0.5, 0.9]
    usual, scaled = (CubicSchedule([factor, 4 * factor, 2 * factor]) for factor in (1.0, scale))
    assert [scaled.at(share) for share in shares] == pytest.approx([usual.at(share) for share in shares], abs=1e-9)


def test_a_density_of_zero_is_hardly_sampled_around_it() -> None:
    found = sampled(flow_cubic_schedule_weights="[0, 1, 0]")
    middle = ((found > 0.25) & (found < 0.75)).float().mean().item()
    curve = density(CubicSchedule([0, 1, 0]))
    assert middle == pytest.approx(curve[1024:3072].sum() / curve.sum(), abs=0.02) and middle > 0.6


def test_a_curve_is_shifted_like_other_distributions() -> None:
    plain = sampled(200, flow_cubic_schedule_weights="[1, 2]").double()
    shifted = sampled(200, flow_cubic_schedule_weights="[1, 2]", flow_schedule_shift=3.0).double()
    assert torch.allclose(3 * plain / (1 + 2 * plain), shifted, atol=1e-6)


@pytest.mark.parametrize("text", ["[]", "[5]", "1"])
def test_one_density_or_none_is_uniform(text: str) -> None:
    assert torch.equal(sampled(50, flow_cubic_schedule_weights=text), sampled(50, flow_use_uniform_schedule=True))


def test_the_fast_schedule_has_four_timesteps_and_no_shift() -> None:
    counts = Counter(sampled(10_000, flux_fast_schedule=True, flow_schedule_shift=3.0).tolist())
    assert sorted(counts) == [0.25, 0.5, 0.75, 1.0]
    assert [counts[sigma] / 10_000 for sigma in (0.25, 0.5, 0.75, 1.0)] == pytest.approx([0.1, 0.1, 0.1, 0.7], abs=0.02)


@pytest.mark.parametrize("options", [{"flux_fast_schedule": True}, {"flow_cubic_schedule_weights": "[1, 4, 2]"}])
def test_a_sample_has_the_same_timestep_in_whatever_batch_it_is(options: dict[str, Any]) -> None:
    objective = make_objective("flow_matching", {}, ObjectiveOptions(**options))
    alone = [objective.sample_timesteps(sample_generators(7, 0, [index], "timestep"), 256) for index in range(4)]
    assert torch.equal(sampled(4, **{"flow_schedule_shift": 3.0, **options}), torch.cat(alone))


@pytest.mark.parametrize(
    ("text", "numbers"),
    [(None, None), ("", None), ("[1, 2.5]", (1.0, 2.5)), ("1, 2", (1.0, 2.0)), ("[]", ()), ("0", (0.0,))],
)
def test_densities_are_a_list_or_numbers_with_commas(text: str | None, numbers: Any) -> None:
    assert parse_densities(text) == numbers


NO_DENSITIES = ("[1, -1]", "[0, 0]", '["a"]', "[true, 1]", "{}", "[[1]]", "[1e999, 1]", "1;2", "[" * 3000, str([1] * 1001))


@pytest.mark.parametrize("text", NO_DENSITIES, ids=range(len(NO_DENSITIES)))
def test_other_texts_are_no_densities(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_densities(text)


@pytest.mark.parametrize(
    "options",
    [
        {"flow_cubic_schedule_weights": "[1, 4, 2]", "t5_padding": "zero"},
        pytest.param({"flux_fast_schedule": True}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_resumed_run_ends_with_the_bytes_of_the_straight_one(options: dict[str, Any], tmp_path: Path) -> None:
    model = {"model_family": "flux", "model_flavour": "dev", "model": str(tiny_model("flux", flavour="dev"))}
    assert_resumes_exactly(tmp_path, **model, **options, model_type="lora", lora_rank=2, max_train_steps=4)


def found(family: str, **values: Any) -> set[tuple[str, str, Level]]:
    given = {**options_with(model_family=family).as_values(), **values}
    return {(problem.option, problem.code, problem.level) for problem in check_options(given)[1]}


@pytest.mark.parametrize(
    ("family", "values", "problem"),
    [
        ("flux", {"flow_cubic_schedule_weights": [1, -1]}, ("flow_cubic_schedule_weights", "not_numbers", Level.ERROR)),
        ("flux", {"flow_cubic_schedule_weights": [1, 10**400]}, ("flow_cubic_schedule_weights", "not_numbers", Level.ERROR)),
        (
            "flux",
            {"flow_cubic_schedule_weights": [1, 2], "flow_use_uniform_schedule": True},
            ("flow_cubic_schedule_weights", "two_schedules", Level.ERROR),
        ),
        ("flux", {"flux_fast_schedule": True, "flow_use_beta_schedule": True}, ("flux_fast_schedule", "two_schedules", Level.ERROR)),
        (
            "flux",
            {"flow_use_beta_schedule": True, "flow_use_uniform_schedule": True},
            ("flow_use_beta_schedule", "two_schedules", Level.ERROR),
        ),
        ("flux", {"flux_fast_schedule": True, "flow_schedule_shift": 2.0}, ("flow_schedule_shift", "no_effect", Level.NOTE)),
        ("flux", {"flow_cubic_schedule_weights": "1,2", "flow_sigmoid_scale": 2.0}, ("flow_sigmoid_scale", "no_effect", Level.NOTE)),
        ("sdxl", {"flux_fast_schedule": True}, ("flux_fast_schedule", "no_effect", Level.NOTE)),
        ("sdxl", {"flow_cubic_schedule_weights": "1,2"}, ("flow_cubic_schedule_weights", "no_effect", Level.NOTE)),
    ],
)
def test_validate_names_distributions_that_cannot_be_sampled_or_do_nothing(family: str, values: dict[str, Any], problem: Any) -> None:
    assert problem in found(family, **values)
    assert problem not in found("flux", flux_fast_schedule=True) | found("flux", flow_cubic_schedule_weights="[1, 2]")


def test_a_default_of_the_family_is_not_noted_as_without_effect() -> None:
    assert ("flow_schedule_shift", "no_effect", Level.NOTE) not in found("qwen_image", flux_fast_schedule=True, flow_schedule_shift=1.73)
    assert ("flow_schedule_shift", "no_effect", Level.NOTE) in found("qwen_image", flux_fast_schedule=True, flow_schedule_shift=3.0)
