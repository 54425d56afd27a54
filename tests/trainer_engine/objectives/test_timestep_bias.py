"""Timesteps that are sampled more or less often than others, against the distribution that the options describe."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.models import options_with
from trainer_engine.config.families import specs
from trainer_engine.config.options.model import ObjectiveOptions
from trainer_engine.config.rules.noise_schedule import schedule_problems
from trainer_engine.contract.errors import InvalidOptions
from trainer_engine.objectives.build import make_objective
from trainer_engine.objectives.diffusion import Diffusion, MinSnr, TimestepBias
from trainer_engine.objectives.randomness import sample_generators

COUNT = 1000
SCHEDULER = {"num_train_timesteps": COUNT, "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def objective(**options: Any) -> Diffusion:
    made = make_objective("epsilon", SCHEDULER, ObjectiveOptions(**options))
    assert isinstance(made, Diffusion)
    return made


def probabilities(begin: int, end: int, multiplier: float, count: int) -> list[float]:
    """The weights of the description, divided by their sum."""
    weights = [multiplier if begin <= index < end else 1.0 for index in range(count)]
    return [weight / sum(weights) for weight in weights]


@given(
    st.integers(2, 40)
    .flatmap(lambda count: st.tuples(st.just(count), st.integers(0, count - 1)))
    .flatmap(lambda pair: st.tuples(st.just(pair[0]), st.just(pair[1]), st.integers(pair[1] + 1, pair[0]))),
    st.sampled_from([0.25, 0.5, 1.0, 2.0, 8.0]),
)
def test_each_timestep_takes_its_share_of_the_unit_interval(sizes: tuple[int, int, int], multiplier: float) -> None:
    count, begin, end = sizes
    bias, shares = TimestepBias(begin, end, multiplier), probabilities(begin, end, multiplier, count)
    start = 0.0
    for index, share in enumerate(shares):
        assert bias.index(start + share / 2, count) == index
        start += share
    assert bias.index(0.0, count) == 0 and bias.index(1 - 2**-53, count) == count - 1


@pytest.mark.parametrize(
    ("options", "begin", "end"),
    [
        ({"timestep_bias_strategy": "earlier"}, 0, 250),
        ({"timestep_bias_strategy": "later", "timestep_bias_portion": 0.1}, 900, 1000),
        ({"timestep_bias_strategy": "range", "timestep_bias_begin": 200, "timestep_bias_end": 300}, 200, 300),
    ],
)
def test_a_strategy_changes_how_often_its_timesteps_come(options: dict[str, Any], begin: int, end: int) -> None:
    sampled = objective(timestep_bias_multiplier=4.0, **options).sample_timesteps(sample_generators(3, 0, range(8000)), 1)
    inside = Counter(begin <= int(t) < end for t in sampled)[True] / 8000
    expected = float(Fraction(4 * (end - begin), 4 * (end - begin) + COUNT - (end - begin)))
    assert sampled.dtype == torch.int64 and inside == pytest.approx(expected, abs=0.02)
    assert {int(t) for t in sampled} <= set(range(COUNT))


def test_a_multiplier_below_one_makes_timesteps_rare() -> None:
    chosen = objective(timestep_bias_strategy="earlier", timestep_bias_portion=0.5, timestep_bias_multiplier=0.01)
    sampled = chosen.sample_timesteps(sample_generators(3, 0, range(2000)), 1)
    assert (sampled < COUNT // 2).float().mean().item() < 0.03


def test_a_sample_has_the_same_timestep_in_whatever_batch_it_is() -> None:
    chosen = objective(timestep_bias_strategy="later", timestep_bias_multiplier=3.0)
    together = chosen.sample_timesteps(sample_generators(3, 5, range(4)), 1)
    alone = [chosen.sample_timesteps(sample_generators(3, 5, [index]), 1) for index in range(4)]
    assert torch.equal(together, torch.cat(alone))


@pytest.mark.parametrize("options", [{}, {"timestep_bias_strategy": "later"}, {"timestep_bias_multiplier": 4.0}])
def test_without_a_strategy_and_a_multiplier_timesteps_are_those_of_a_run_without_bias(options: dict[str, Any]) -> None:
    usual = objective().sample_timesteps(sample_generators(3, 0, range(50)), 1)
    assert torch.equal(objective(**options).sample_timesteps(sample_generators(3, 0, range(50)), 1), usual)


def test_a_range_beyond_the_schedule_of_the_model_is_refused() -> None:
    options = ObjectiveOptions(timestep_bias_strategy="range", timestep_bias_multiplier=2.0, timestep_bias_end=600)
    with pytest.raises(InvalidOptions, match="500 timesteps") as refused:
        make_objective("epsilon", {**SCHEDULER, "num_train_timesteps": 500}, options)
    chosen = options_with(timestep_bias_strategy="range", timestep_bias_multiplier=2.0, timestep_bias_end=600)
    spec = specs()["pixart_sigma"]
    assert list(schedule_problems(chosen, spec, {"num_train_timesteps": 500})) == list(refused.value.problems)
    assert list(schedule_problems(chosen, spec, {"num_train_timesteps": 600})) == []


def test_a_range_reaches_to_the_end_of_a_schedule_with_more_timesteps_than_usual() -> None:
    options = ObjectiveOptions(
        timestep_bias_strategy="range", timestep_bias_multiplier=2.0, timestep_bias_begin=1000, timestep_bias_end=1100
    )
    made = make_objective("epsilon", {**SCHEDULER, "num_train_timesteps": 1100}, options)
    assert isinstance(made, Diffusion) and made.bias == TimestepBias(1000, 1100, 2.0)
    assert max(made.sample_timesteps(sample_generators(3, 0, range(2000)), 1).tolist()) >= 1090


def test_evaluation_timesteps_do_not_depend_on_the_bias() -> None:
    biased = objective(timestep_bias_strategy="later", timestep_bias_multiplier=9.0)
    assert torch.equal(biased.spread_timesteps(10), objective().spread_timesteps(10))


def test_a_factor_multiplies_the_weights_of_min_snr() -> None:
    ratio = torch.tensor([0.1, 1.0, 10.0])
    assert torch.equal(MinSnr(5.0, factor=2.0).of(ratio, 0.0), 2 * MinSnr(5.0).of(ratio, 0.0))
    weighted = objective(snr_gamma=5.0, snr_weight=3.0).weight(ratio)
    usual = objective(snr_gamma=5.0).weight(ratio)
    assert weighted is not None and usual is not None and torch.equal(weighted, 3 * usual)


@pytest.mark.parametrize("sigma_data", [0.5, 1.0, 2.0])
def test_the_soft_form_measures_the_signal_by_the_data(sigma_data: float) -> None:
    chosen = objective(snr_gamma=5.0, use_soft_min_snr=True, soft_min_snr_sigma_data=sigma_data)
    t = torch.tensor([1, 400, 999])
    alpha, sigma = (factor.flatten().double() for factor in chosen.coefficients(t, torch.zeros(3, 1)))
    signal = sigma_data**2 * alpha**2 / sigma**2
    expected = signal * 5 / (signal + 5) / (alpha**2 / sigma**2)
    weights = chosen.weight(chosen.noise_level(t, torch.zeros(3))[1])
    assert weights is not None and torch.allclose(weights.double(), expected, rtol=1e-5)
