"""The objective that a run trains with."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from diffusers import DDPMScheduler

from trainer_engine.config.options.model import ObjectiveOptions
from trainer_engine.config.rules.timesteps import empty_part_problem, range_problem
from trainer_engine.contract.errors import InvalidOptions, ModelUnavailable
from trainer_engine.objectives.base import Objective
from trainer_engine.objectives.diffusion import Diffusion, Epsilon, MinSnr, TimestepBias, VPrediction
from trainer_engine.objectives.flow_matching import make_flow_matching
from trainer_engine.objectives.losses import ErrorShape

DIFFUSION: Mapping[str, type[Diffusion]] = MappingProxyType({"epsilon": Epsilon, "v_prediction": VPrediction})
FLOW_MATCHING = "flow_matching"


def make_objective(prediction_type: str, scheduler_config: Mapping[str, Any], options: ObjectiveOptions) -> Objective:
    """``make_objective(family.prediction_type, family.scheduler_config(), options.objective)``.

    Raises ModelUnavailable for a type that has no code here.
    """
    objective: Objective
    if prediction_type == FLOW_MATCHING:
        objective = make_flow_matching(scheduler_config, options)
    elif prediction_type in DIFFUSION:
        alphas = DDPMScheduler.from_config(dict(scheduler_config)).alphas_cumprod
        part = _part(options, len(alphas))
        objective = DIFFUSION[prediction_type](alphas, _weighting(options), _bias(options, len(alphas), part), part)
    else:
        known = ", ".join(sorted([*DIFFUSION, FLOW_MATCHING]))
        raise ModelUnavailable(f"The base model predicts {prediction_type!r}; known here: {known}.", hint="set prediction_type")
    objective.shape = ErrorShape(options.loss_type, options.huber_c, options.huber_schedule)
    return objective


def _weighting(options: ObjectiveOptions) -> MinSnr | None:
    if not options.snr_gamma:
        return None
    return MinSnr(options.snr_gamma, options.use_soft_min_snr, options.snr_weight, options.soft_min_snr_sigma_data or 1.0)


def _part(options: ObjectiveOptions, count: int) -> range:
    """The timesteps that are trained of a schedule with ``count``. Raises InvalidOptions if there are none."""
    part = options.trained_part(count)
    if not part:
        raise InvalidOptions([empty_part_problem(options.refiner_training_strength)])
    return part


def _bias(options: ObjectiveOptions, count: int, part: range) -> TimestepBias | None:
    """The sampling of ``part`` of a schedule with ``count`` timesteps; None for all alike.

    Raises InvalidOptions if the range lies beyond the schedule.
    """
    strategy, multiplier = options.timestep_bias_strategy, options.timestep_bias_multiplier
    if strategy == "none" or multiplier == 1:
        return None
    width = max(1, round(options.timestep_bias_portion * count))
    begin, end = (0, width) if strategy == "earlier" else (count - width, count)
    if strategy == "range":
        begin, end = options.timestep_bias_begin, options.timestep_bias_end
        problem = range_problem(options, count)
        if problem:
            raise InvalidOptions([problem])
    begin, end = max(begin, part.start) - part.start, min(end, part.stop) - part.start
    return TimestepBias(begin, end, multiplier) if begin < end else None
