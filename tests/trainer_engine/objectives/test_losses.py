"""Loss shapes and weights against the formulas they are named after."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import gradcheck

from trainer_engine.config.options.model import ObjectiveOptions
from trainer_engine.config.parse import check_options
from trainer_engine.contract.errors import Level
from trainer_engine.objectives.build import make_objective
from trainer_engine.objectives.losses import ErrorShape

SCHEDULE = {"num_train_timesteps": 1000, "beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear"}
MIDDLE, LEVEL = torch.tensor([0.5]), torch.tensor([1.0])
GIVEN = {"model_family": "pixart_sigma", "model_type": "full", "output_dir": "o", "data_backend_config": "d", "max_train_steps": 1}


@pytest.mark.parametrize(("kind", "small", "large"), [("huber", 1.0, 2 * 0.1), ("smooth_l1", 10.0, 2.0)])
def test_pseudo_huber_is_quadratic_below_c_and_linear_above(kind: str, small: float, large: float) -> None:
    shape = ErrorShape(kind, 0.1)
    tiny, huge = torch.tensor([[1e-3]]), torch.tensor([[100.0]])
    assert (shape(tiny, MIDDLE, LEVEL).double() / tiny.double().square()).item() == pytest.approx(small, rel=1e-3)
    assert (shape(huge, MIDDLE, LEVEL) / huge).item() == pytest.approx(large, rel=2e-3)


@pytest.mark.parametrize("schedule", ["snr", "exponential"])
def test_c_falls_from_one_to_its_value_as_the_noise_grows(schedule: str) -> None:
    shape = ErrorShape("huber", 0.1, schedule)
    c = shape.threshold(torch.tensor([0.0, 0.5, 1.0]), torch.tensor([0.0, 1.0, 1e6]))
    assert c[0].item() == pytest.approx(1.0)
    assert c[2].item() == pytest.approx(0.1, abs=1e-4)
    assert c[0] > c[1] > c[2]


def test_a_constant_c_is_constant() -> None:
    assert ErrorShape("huber", 0.3).threshold(torch.tensor([0.0, 1.0]), torch.tensor([0.0, 9.0])).tolist() == pytest.approx([0.3, 0.3])


@pytest.mark.parametrize(("prediction_type", "offset"), [("epsilon", 0.0), ("v_prediction", 1.0)])
@pytest.mark.parametrize("soft", [False, True])
def test_min_snr_weights_equal_their_formula(prediction_type: str, offset: float, soft: bool) -> None:
    weighted = make_objective(prediction_type, SCHEDULE, ObjectiveOptions(snr_gamma=5.0, use_soft_min_snr=soft))
    plain = make_objective(prediction_type, SCHEDULE, ObjectiveOptions())
    prediction, target, t = torch.randn(3, 4, 8, 8), torch.randn(3, 4, 8, 8), torch.tensor([10, 400, 900])
    alphas = torch.cumprod(1 - torch.linspace(0.0001, 0.02, 1000, dtype=torch.float64), dim=0)[t]
    snr = alphas / (1 - alphas)
    bounded = 5 * snr / (snr + 5) if soft else snr.clamp(max=5.0)
    found = weighted.loss(prediction, target, t) / plain.loss(prediction, target, t)
    assert torch.allclose(found.double(), bounded / (snr + offset), rtol=1e-4)


@pytest.mark.parametrize("beta_schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_min_snr_weights_equal_those_of_the_training_scripts_of_diffusers(prediction_type: str, beta_schedule: str) -> None:
    config = {**SCHEDULE, "beta_schedule": beta_schedule}
    t = torch.tensor([0, 1, 250, 500, 998, 999])
    snr = compute_snr(DDPMScheduler(**config), t)
    wanted = torch.stack([snr, torch.full_like(snr, 5.0)], dim=1).amin(dim=1) / (snr + (prediction_type == "v_prediction"))
    objective = make_objective(prediction_type, config, ObjectiveOptions(snr_gamma=5.0))
    found = objective.loss(torch.ones(6, 1, 1, 1), torch.zeros(6, 1, 1, 1), t)
    assert torch.allclose(found, wanted, rtol=2e-4)


@pytest.mark.parametrize("kind", ["l2", "huber", "smooth_l1"])
@pytest.mark.parametrize("schedule", ["constant", "exponential", "snr"])
def test_gradients_of_an_error_shape_equal_finite_differences(kind: str, schedule: str) -> None:
    error = torch.tensor([[-3.0, -1e-2, 0.0, 1e-3], [0.5, 2.0, 1e-1, -0.1]], dtype=torch.float64, requires_grad=True)
    progress, level = torch.tensor([0.2, 0.9], dtype=torch.float64), torch.tensor([0.25, 9.0], dtype=torch.float64)
    assert gradcheck(lambda value: ErrorShape(kind, 0.1, schedule)(value, progress, level), (error,), eps=1e-7)


@given(st.sampled_from(["l2", "huber", "smooth_l1"]), st.floats(1e-4, 1), st.floats(-1e4, 1e4, width=32), st.floats(0, 1, width=32))
def test_an_error_costs_the_same_in_both_directions_and_more_the_larger_it_is(kind: str, c: float, error: float, progress: float) -> None:
    shape, t = ErrorShape(kind, c, "exponential"), torch.tensor([progress])
    less, cost, other, more = (shape(torch.tensor([value]), t, LEVEL).item() for value in (error / 2, error, -error, 2 * error))
    assert 0 <= less <= cost == other <= more
    assert cost <= error**2 * (1 + 1e-5) + 1e-30 or kind == "smooth_l1"


@pytest.mark.parametrize(("prediction_type", "limit"), [("epsilon", 1.0), ("v_prediction", 0.0)])
@pytest.mark.parametrize("soft", [False, True])
def test_pure_noise_has_a_weight(prediction_type: str, limit: float, soft: bool) -> None:
    options = ObjectiveOptions(snr_gamma=5.0, use_soft_min_snr=soft)
    weighted = make_objective(prediction_type, {**SCHEDULE, "rescale_betas_zero_snr": True}, options)
    losses = weighted.loss(torch.ones(1, 4, 2, 2), torch.zeros(1, 4, 2, 2), torch.tensor([999]))
    assert losses.tolist() == [limit]


@pytest.mark.parametrize("kind", ["l2", "huber"])
@pytest.mark.parametrize("shape", [(2, 4, 8, 8), (2, 4, 3, 8, 8)])
def test_a_masked_loss_is_the_mean_over_the_masked_elements(kind: str, shape: tuple[int, ...]) -> None:
    objective, t = make_objective("epsilon", SCHEDULE, ObjectiveOptions(loss_type=kind, snr_gamma=5.0)), torch.tensor([10, 400])
    prediction, target = torch.randn(shape), torch.randn(shape)
    mask = torch.zeros(2, 1, *shape[2:])
    mask[..., :3] = 1
    found = objective.loss(prediction, target, t, mask=mask)
    assert torch.allclose(found, objective.loss(prediction[..., :3], target[..., :3], t))
    assert torch.equal(found, objective.loss(prediction, target, t, mask=mask.bool()))
    assert torch.allclose(objective.loss(prediction, target, t, mask=0.5 * torch.ones_like(mask)), objective.loss(prediction, target, t))


def test_elements_outside_a_mask_get_no_gradient_and_an_empty_mask_costs_nothing() -> None:
    objective = make_objective("epsilon", SCHEDULE, ObjectiveOptions())
    prediction, mask = torch.ones(2, 4, 8, 8, requires_grad=True), torch.zeros(2, 1, 8, 8)
    mask[0, :, :4] = 1
    losses = objective.loss(prediction, torch.zeros(2, 4, 8, 8), torch.tensor([10, 400]), mask=mask)
    assert losses.tolist() == [1.0, 0.0]
    losses.mean().backward()
    assert prediction.grad is not None and prediction.grad.isfinite().all()
    assert torch.equal(prediction.grad != 0, mask.bool().expand(2, 4, 8, 8))


def test_weights_multiply_the_loss_of_each_sample() -> None:
    objective, t = make_objective("v_prediction", SCHEDULE, ObjectiveOptions(snr_gamma=5.0)), torch.tensor([10, 400])
    prediction, target, weights = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8), torch.tensor([2.0, 0.25])
    plain = objective.loss(prediction, target, t)
    assert torch.equal(objective.loss(prediction, target, t, weights=weights), plain * weights)


@pytest.mark.parametrize(
    "values",
    [
        {"flow_schedule_auto_shift": True},
        {"flow_beta_schedule_alpha": 3.0},
        {"flow_sigmoid_scale": 2.0, "flow_use_uniform_schedule": True},
    ],
)
def test_an_option_that_another_one_of_flow_matching_replaces_is_reported(values: dict[str, object]) -> None:
    options, problems = check_options({**GIVEN, "model_family": "flux", "model_type": "lora", **values})
    assert options is not None
    assert [(problem.option, problem.code) for problem in problems if problem.option in values] == [(next(iter(values)), "no_effect")]


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"flow_sigmoid_scale": 2.0}, "flow_sigmoid_scale"),
        ({"huber_c": 0.2}, "huber_c"),
        ({"use_soft_min_snr": True}, "use_soft_min_snr"),
    ],
)
def test_options_without_effect_are_reported(values: dict[str, object], name: str) -> None:
    _, problems = check_options({**GIVEN, **values})
    (problem,) = [problem for problem in problems if problem.option == name]
    assert (problem.level, problem.code) == (Level.NOTE, "no_effect")


def test_two_ways_of_sampling_timesteps_contradict_each_other() -> None:
    options, problems = check_options({**GIVEN, "flow_use_uniform_schedule": True, "flow_use_beta_schedule": True})
    assert options is None
    assert "two_schedules" in {problem.code for problem in problems}
