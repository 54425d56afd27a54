"""The objective that a run trains with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from diffusers import DDPMScheduler

from trainer_engine.contract.errors import ModelUnavailable
from trainer_engine.contract.options.objective import ObjectiveOptions
from trainer_engine.objectives.base import Objective
from trainer_engine.objectives.diffusion import Diffusion, Epsilon, VPrediction

DIFFUSION: Mapping[str, type[Diffusion]] = MappingProxyType({"epsilon": Epsilon, "v_prediction": VPrediction})


def make_objective(prediction_type: str, scheduler_config: Mapping[str, Any], options: ObjectiveOptions) -> Objective:
    """``make_objective(family.prediction_type, family.scheduler_config(), options.objective)``.

    Raises ModelUnavailable for a type that has no code here.
    """
    builder: Callable[..., Objective] | None = DIFFUSION.get(prediction_type)
    if builder is None:
        known = ", ".join(sorted(DIFFUSION))
        raise ModelUnavailable(f"The base model predicts {prediction_type!r}; known here: {known}.", hint="set prediction_type")
    return builder(DDPMScheduler.from_config(dict(scheduler_config)).alphas_cumprod)
