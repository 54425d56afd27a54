"""Flow matching against diffusers, and its timesteps against the distributions that they are sampled from."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from torch import Tensor

from trainer_engine.config.options.model import ObjectiveOptions
from trainer_engine.objectives.base import Objective
from trainer_engine.objectives.build import make_objective
from trainer_engine.objectives.randomness import sample_generators

PLAIN = {"flow_schedule_shift": 0}
TOKENS = 1024


def objective(**options: Any) -> Objective:
    return make_objective("flow_matching", {}, ObjectiveOptions(**options))


def sampled(tokens: int = TOKENS, count: int = 4_000, **options: Any) -> Tensor:
    return objective(**options).sample_timesteps(sample_generators(7, 0, range(count), "timestep"), tokens)


def test_noise_and_target_equal_those_of_diffusers() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler()
    data, noise, t = torch.randn(3, 4, 8, 8), torch.randn(3, 4, 8, 8), scheduler.timesteps[[3, 400, 900]]
    ours = objective()
    assert torch.allclose(ours.add_noise(data, noise, t / 1000), scheduler.scale_noise(data, t, noise), atol=1e-6)
    assert torch.equal(ours.target(data, noise, t), noise - data)


def test_latents_of_a_video_are_noised_like_those_of_an_image() -> None:
    data, noise, t = torch.randn(2, 4, 3, 8, 8), torch.randn(2, 4, 3, 8, 8), torch.tensor([0.3, 0.9])
    ours = objective()
    for frame in range(3):
        one, eps = data[:, :, frame], noise[:, :, frame]
        assert torch.equal(ours.add_noise(data, noise, t)[:, :, frame], ours.add_noise(one, eps, t))
        assert torch.equal(ours.target(data, noise, t)[:, :, frame], ours.target(one, eps, t))


def test_one_step_along_the_target_gives_the_data_back() -> None:
    data, noise, t = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8), torch.tensor([0.3, 0.9])
    ours = objective()
    back = ours.add_noise(data, noise, t) - t.view(-1, 1, 1, 1) * ours.target(data, noise, t)
    assert torch.allclose(back, data, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "quarter", "median"),
    [
        ({}, 1 / (1 + math.exp(0.6745)), 0.5),
        ({"flow_sigmoid_scale": 2.0}, 1 / (1 + math.exp(2 * 0.6745)), 0.5),
        ({"flow_use_uniform_schedule": True}, 0.25, 0.5),
        ({"flow_use_beta_schedule": True, "flow_beta_schedule_beta": 1.0}, 0.5, math.sqrt(0.5)),
    ],
)
def test_timesteps_follow_their_distribution(options: dict[str, Any], quarter: float, median: float) -> None:
    t = sampled(**PLAIN, **options)
    assert t.dtype == torch.float32
    assert float(t.min()) >= 0
    assert float(t.max()) <= 1
    assert t.quantile(0.25).item() == pytest.approx(quarter, abs=0.03)
    assert t.quantile(0.5).item() == pytest.approx(median, abs=0.03)


def test_the_static_shift_is_the_formula() -> None:
    plain = sampled(**PLAIN).double()
    assert torch.allclose(sampled(flow_schedule_shift=3.0).double(), 3 * plain / (1 + 2 * plain), atol=1e-6)


@pytest.mark.parametrize("edge", [32, 64, 128])
def test_the_automatic_shift_is_the_samplers(edge: int) -> None:
    plain = sampled(edge * edge // 4, **PLAIN)
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    mu = 0.5 + (1.15 - 0.5) * (edge * edge / 4 - 256) / (4096 - 256)
    wanted = scheduler.time_shift(mu, 1.0, plain)
    found = sampled(edge * edge // 4, **PLAIN, flow_schedule_auto_shift=True)
    assert torch.allclose(found, wanted, atol=1e-5)


def test_a_scheduler_that_states_null_is_taken_as_one_that_states_nothing() -> None:
    silent = dict.fromkeys(("base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len"))
    options = ObjectiveOptions(**PLAIN, flow_schedule_auto_shift=True)
    generators = sample_generators(7, 0, range(8), "timestep")
    found = make_objective("flow_matching", silent, options).sample_timesteps(generators, TOKENS)
    assert torch.equal(found, sampled(count=8, **PLAIN, flow_schedule_auto_shift=True))


def test_a_scheduler_that_states_zero_is_taken_at_its_word() -> None:
    config = {"base_shift": 0.0, "max_shift": 1.15, "base_image_seq_len": 256, "max_image_seq_len": 4096}
    ours = make_objective("flow_matching", config, ObjectiveOptions(**PLAIN, flow_schedule_auto_shift=True))
    plain = sampled(count=8, **PLAIN)
    for tokens in (256, 1024, 4096):
        found = ours.sample_timesteps(sample_generators(7, 0, range(8), "timestep"), tokens)
        mu = calculate_shift(tokens, 256, 4096, 0.0, 1.15)
        assert torch.allclose(found, FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True).time_shift(mu, 1.0, plain), atol=1e-6)


def test_a_static_shift_comes_before_the_automatic_one() -> None:
    assert torch.equal(sampled(flow_schedule_shift=2.0, flow_schedule_auto_shift=True), sampled(flow_schedule_shift=2.0))


def test_a_samples_timestep_is_its_own() -> None:
    ours = objective()
    both = ours.sample_timesteps(sample_generators(7, 3, [0, 1], "timestep"), TOKENS)
    second = ours.sample_timesteps(sample_generators(7, 3, [1], "timestep"), TOKENS)
    assert torch.allclose(both[1:], second, rtol=1e-6)  # vectorised functions round by the size of the batch


def test_the_loss_without_options_is_the_mean_squared_error() -> None:
    prediction, target = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    wanted = (prediction - target).square().flatten(1).mean(dim=1)
    assert torch.equal(objective().loss(prediction, target, torch.tensor([0.1, 1.0])), wanted)


def test_spread_timesteps_depend_on_no_option() -> None:
    for options in ({}, {"flow_schedule_shift": 3.0}, {"flow_use_beta_schedule": True}):
        objective = make_objective("flow_matching", {}, ObjectiveOptions(**options))
        assert objective.spread_timesteps(4).tolist() == [0.125, 0.375, 0.625, 0.875]


@pytest.mark.parametrize("offset", [-1.5, 0.7])
def test_an_offset_is_added_before_the_sigmoid_and_the_shift_comes_after_it(offset: float) -> None:
    def with_offset(**options: Any) -> Tensor:
        return objective(**options).sample_timesteps(sample_generators(7, 0, range(500), "timestep"), TOKENS, offset)

    plain = sampled(count=500, flow_sigmoid_scale=1.3, **PLAIN).double()
    wanted = torch.sigmoid(torch.logit(plain) + offset)
    found = with_offset(flow_sigmoid_scale=1.3, **PLAIN)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-5)
    assert bool(found.mean() > plain.mean()) == (offset > 0)
    shifted = with_offset(flow_sigmoid_scale=1.3, flow_schedule_shift=3.0)
    torch.testing.assert_close(shifted.double(), 3 * wanted / (1 + 2 * wanted), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "options", [PLAIN, {"flow_schedule_shift": 3.0}, {"flow_use_uniform_schedule": True}, {"flow_use_beta_schedule": True}]
)
def test_an_offset_of_zero_samples_the_same_timesteps(options: dict[str, Any]) -> None:
    ours = objective(**options)
    usual, zero = (ours.sample_timesteps(sample_generators(7, 0, range(50), "timestep"), TOKENS, *more) for more in ((), (0.0,)))
    assert torch.equal(usual, zero)
