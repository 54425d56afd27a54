"""Samplers of flow matching, as validation images of families with a schedule of sigmas are made with them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLFlux2, AutoencoderKLQwenImage, DPMSolverMultistepScheduler, SchedulerMixin, UniPCMultistepScheduler

from trainer_engine.families.common.pipeline_folder import CopiedPart
from trainer_engine.weights.loading import PartFinder, load_diffusers, make_scheduler

FLOW = MappingProxyType({"prediction_type": "flow_prediction", "use_flow_sigmas": True, "use_beta_sigmas": False})
"""Settings of solvers that take the steps of flow matching, which the base model's may be spaced otherwise."""
SAMPLERS: Mapping[str, tuple[str, Mapping[str, Any]]] = MappingProxyType(
    {
        "euler": ("FlowMatchEulerDiscreteScheduler", {}),
        "unipc": ("UniPCMultistepScheduler", FLOW),
        "dpm++": ("DPMSolverMultistepScheduler", FLOW),
    }
)
"""``validation_noise_scheduler`` -> class of diffusers and its settings beside the shift of the schedule."""


class FlowSolver(DPMSolverMultistepScheduler):  # type: ignore[misc]  # mypy does not read diffusers' types
    """As the pipelines ask a sampler. Some tell it the even steps that it makes by itself, and all tell it a shift for the size of the
    image, which its class refuses where the schedule is the same for every size."""

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        mu: float | None = None,
        sigmas: Sequence[float] | None = None,
    ) -> None:
        steps = num_inference_steps if sigmas is None else len(sigmas)
        super().set_timesteps(steps, device, mu=mu if self.config.use_dynamic_shifting else None)


class FlowPredictor(UniPCMultistepScheduler):  # type: ignore[misc]  # mypy does not read diffusers' types
    """Takes the steps that a pipeline names as a list, which its class multiplies as an array."""

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        sigmas: Sequence[float] | None = None,
        mu: float | None = None,
    ) -> None:
        super().set_timesteps(num_inference_steps, device, None if sigmas is None else np.asarray(sigmas), mu)


AS_ASKED: Mapping[type[SchedulerMixin], Any] = MappingProxyType(
    {DPMSolverMultistepScheduler: FlowSolver, UniPCMultistepScheduler: FlowPredictor}
)
"""Class of diffusers -> the same class, which takes its steps as the pipelines name them."""


def flow_scheduler(config: Mapping[str, Any], sampler: str | None, base: str) -> SchedulerMixin:
    """The sampler of a base model's ``config``, or the named one on the same schedule. ``base`` names the model in errors.

    Solvers and the sampler of Euler have different names for a shift that does not depend on the size of the image.
    """
    name, settings = SAMPLERS[sampler] if sampler else (str(config.get("_class_name")), {})
    if sampler:
        shift = config.get("shift") or config.get("flow_shift") or 1.0
        settings = {**settings, "flow_shift" if settings else "shift": shift}
    scheduler = make_scheduler(config, name, settings, base)
    return AS_ASKED[type(scheduler)].from_config(scheduler.config) if type(scheduler) in AS_ASKED else scheduler


class FlowPartFinder(PartFinder):
    """Finds the components of a pipeline of flow matching."""

    @abstractmethod
    def load_transformer(self, dtype: torch.dtype, folder: Path | None = None) -> Any:
        """The network, on the CPU: from the base model, or from a folder that holds ``config.json`` and weights."""

    @abstractmethod
    def copied(self) -> dict[str, CopiedPart]:
        """Subfolder -> what a saved pipeline has of the base model."""

    def make_scheduler(self, sampler: str | None = None) -> SchedulerMixin:
        """The base model's own sampler, or the named one, on the base model's schedule."""
        return flow_scheduler(self.scheduler_config(), sampler, self.base.name)

    def load_frame_vae(self, dtype: torch.dtype | None) -> AutoencoderKLQwenImage:
        """The autoencoder of Qwen-Image, for ``FrameAutoencoder``. ``dtype`` None keeps the type of the weights."""
        vae = load_diffusers(AutoencoderKLQwenImage, self.find("vae"), dtype)
        assert isinstance(vae, AutoencoderKLQwenImage)
        return vae

    def load_shuffled_vae(self, dtype: torch.dtype | None) -> AutoencoderKLFlux2:
        """The autoencoder of Flux.2, for ``ShuffledAutoencoder``. ``dtype`` None keeps the type of the weights."""
        vae = load_diffusers(AutoencoderKLFlux2, self.find("vae"), dtype)
        assert isinstance(vae, AutoencoderKLFlux2)
        return vae
