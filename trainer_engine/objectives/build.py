"""The objective that a run trains with."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from diffusers import DDPMScheduler

from trainer_engine.config.options.model import ObjectiveOptions
from trainer_engine.contract.errors import ModelUnavailable
from trainer_engine.objectives.base import Objective
from trainer_engine.objectives.diffusion import Diffusion, Epsilon, MinSnr, VPrediction
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
        weighting = MinSnr(options.snr_gamma, options.use_soft_min_snr) if options.snr_gamma else None
        objective = DIFFUSION[prediction_type](DDPMScheduler.from_config(dict(scheduler_config)).alphas_cumprod, weighting)
    else:
        known = ", ".join(sorted([*DIFFUSION, FLOW_MATCHING]))
        raise ModelUnavailable(f"The base model predicts {prediction_type!r}; known here: {known}.", hint="set prediction_type")
    objective.shape = ErrorShape(options.loss_type, options.huber_c, options.huber_schedule)
    return objective
