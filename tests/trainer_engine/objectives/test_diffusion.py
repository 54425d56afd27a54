from __future__ import annotations

import math

import pytest
import torch
from diffusers import DDPMScheduler

from trainer_engine.config.options.model import ObjectiveOptions
from trainer_engine.contract.errors import ModelUnavailable
from trainer_engine.objectives.build import make_objective
from trainer_engine.objectives.diffusion import Diffusion, Epsilon, MinSnr, VPrediction
from trainer_engine.objectives.losses import ErrorShape

THREE_STEPS = torch.tensor([0.96, 0.64, 0.36])


def column(*values: float) -> torch.Tensor:
    return torch.tensor(values).view(-1, 1, 1, 1)


def test_noise_is_mixed_by_hand_computed_coefficients() -> None:
    noisy = Epsilon(THREE_STEPS).add_noise(column(10.0, 10.0), column(1.0, -1.0), torch.tensor([1, 2]))
    assert noisy.flatten().tolist() == pytest.approx([0.8 * 10 + 0.6 * 1, 0.6 * 10 - 0.8 * 1])


def test_epsilon_learns_the_noise_itself() -> None:
    noise = torch.randn(2, 4, 3, 3)
    assert torch.equal(Epsilon(THREE_STEPS).target(torch.randn(2, 4, 3, 3), noise, torch.tensor([0, 2])), noise)


def test_v_is_the_derivative_of_x_t_by_its_angle() -> None:
    target = VPrediction(THREE_STEPS).target(column(2.0), column(5.0), torch.tensor([2]))
    assert target.item() == pytest.approx(0.6 * 5 - 0.8 * 2)


def test_v_and_x_t_give_the_data_back() -> None:
    objective, data, noise, t = VPrediction(THREE_STEPS), torch.randn(3, 4, 2, 2), torch.randn(3, 4, 2, 2), torch.tensor([0, 1, 2])
    alpha, sigma = objective.coefficients(t, data)
    recovered = alpha * objective.add_noise(data, noise, t) - sigma * objective.target(data, noise, t)
    assert torch.allclose(recovered, data, atol=1e-5)


def test_the_loss_of_a_sample_is_the_mean_over_everything_but_the_batch() -> None:
    prediction = torch.tensor([[[[1.0, 3.0]]], [[[0.0, 0.0]]]])
    losses = Epsilon(THREE_STEPS).loss(prediction, torch.zeros(2, 1, 1, 2), torch.tensor([0, 1]))
    assert losses.tolist() == [5.0, 0.0]


def test_the_loss_is_computed_in_float32_whatever_the_prediction_has() -> None:
    prediction = torch.full((1, 4, 8, 8), 1 + 2**-7, dtype=torch.bfloat16)
    loss = Epsilon(THREE_STEPS).loss(prediction, torch.ones(1, 4, 8, 8), torch.tensor([0]))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(2**-14, rel=1e-6)


@pytest.mark.parametrize("make", [Epsilon, VPrediction])
def test_latents_of_a_video_are_treated_like_those_of_its_frames(make: type[Diffusion]) -> None:
    objective, t = make(THREE_STEPS, MinSnr(5.0)), torch.tensor([0, 2])
    objective.shape = ErrorShape("huber", 0.1, "snr")
    data, noise, prediction = (torch.randn(2, 4, 3, 8, 8) for _ in range(3))
    noisy, target = objective.add_noise(data, noise, t), objective.target(data, noise, t)
    loss, losses = objective.loss(prediction, target, t), []
    for frame in range(3):
        one, eps = data[:, :, frame], noise[:, :, frame]
        assert torch.equal(noisy[:, :, frame], objective.add_noise(one, eps, t))
        assert torch.equal(target[:, :, frame], objective.target(one, eps, t))
        losses.append(objective.loss(prediction[:, :, frame], target[:, :, frame], t))
    assert torch.allclose(loss, torch.stack(losses).mean(dim=0))


def test_timesteps_cover_the_schedule_evenly() -> None:
    generator = torch.Generator().manual_seed(0)
    timesteps = Epsilon(THREE_STEPS).sample_timesteps([generator] * 3_000, token_count=16)
    assert timesteps.dtype == torch.int64
    assert all(900 < count < 1_100 for count in torch.bincount(timesteps, minlength=3).tolist())


def test_spread_timesteps_lie_in_the_middle_of_equal_parts() -> None:
    objective = make_objective("epsilon", {"num_train_timesteps": 1000}, ObjectiveOptions(snr_gamma=5.0))
    assert objective.spread_timesteps(4).tolist() == [125, 375, 625, 875]
    assert objective.spread_timesteps(1000).tolist() == list(range(1000))


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_schedule_and_target_equal_those_of_diffusers(prediction_type: str) -> None:
    config = {"num_train_timesteps": 1000, "beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear"}
    reference = DDPMScheduler(**config)
    objective = make_objective(prediction_type, config, ObjectiveOptions())
    data, noise, t = torch.randn(4, 4, 8, 8), torch.randn(4, 4, 8, 8), torch.tensor([0, 17, 500, 999])
    wanted = noise if prediction_type == "epsilon" else reference.get_velocity(data, noise, t)
    assert torch.allclose(objective.add_noise(data, noise, t), reference.add_noise(data, noise, t), atol=1e-6)
    assert torch.allclose(objective.target(data, noise, t), wanted, atol=1e-6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_micro_batch_on_a_gpu_does_not_wait_for_it() -> None:
    objective = VPrediction(THREE_STEPS)
    data, t = torch.randn(3, 4, 2, 2, device="cuda"), torch.tensor([0, 1, 2], device="cuda")
    objective.add_noise(data, data, t)
    torch.cuda.set_sync_debug_mode("error")
    try:
        objective.loss(objective.add_noise(data, data, t), objective.target(data, data, t), t)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_schedule_written_for_another_sampler_is_read() -> None:
    config = {"_class_name": "DPMSolverMultistepScheduler", "beta_start": 0.0001, "beta_end": 0.02, "solver_order": 2}
    objective = make_objective("epsilon", config, ObjectiveOptions())
    assert isinstance(objective, Epsilon)
    assert objective.alphas[0].item() == pytest.approx(math.sqrt(1 - 0.0001))


def test_a_prediction_without_code_is_refused_by_name() -> None:
    with pytest.raises(ModelUnavailable, match="'sample'; known here: epsilon, flow_matching, v_prediction"):
        make_objective("sample", {}, ObjectiveOptions())


def test_a_rescaled_schedule_ends_in_pure_noise_and_equals_that_of_diffusers() -> None:
    config = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "rescale_betas_zero_snr": True}
    objective = make_objective("v_prediction", config, ObjectiveOptions(snr_gamma=5.0))
    scheduler = DDPMScheduler(**config, prediction_type="v_prediction")
    last, middle = torch.tensor([999, 999]), torch.tensor([400, 999])
    data, noise = torch.randn(2, 4, 3, 3), torch.randn(2, 4, 3, 3)
    assert torch.equal(objective.add_noise(data, noise, last), noise)
    assert torch.equal(objective.target(data, noise, last), -data)
    assert torch.allclose(objective.target(data, noise, middle), scheduler.get_velocity(data, noise, middle), atol=1e-6)
    assert objective.loss(torch.zeros_like(data), data, middle).isfinite().all()
