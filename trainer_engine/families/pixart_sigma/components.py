"""Finding and loading the components of a PixArt Sigma pipeline, each from where it is."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import PixArtTransformer2DModel, SchedulerMixin
from torch import nn

from trainer_engine.config.controlnet import NAME as CONTROLNET
from trainer_engine.config.options import TrainingOptions
from trainer_engine.families.common.controlnet import load_controlnet, new_controlnet
from trainer_engine.families.common.samplers import SAMPLERS
from trainer_engine.families.common.t5_text import T5PartFinder
from trainer_engine.families.pixart_sigma.controlnet import PixArtControlNetAdapterModel
from trainer_engine.weights.loading import load_diffusers, make_scheduler, part_in


class PixArtParts(T5PartFinder):
    """Finds and loads the parts of a PixArt Sigma pipeline."""

    def load_transformer(self, dtype: torch.dtype, folder: Path | None = None) -> PixArtTransformer2DModel:
        """From the base model, or from a folder that holds ``config.json`` and weights."""
        network = load_diffusers(PixArtTransformer2DModel, part_in(folder) if folder else self.find("transformer"), dtype)
        assert isinstance(network, PixArtTransformer2DModel)
        return network

    def load_controlnet(self, options: TrainingOptions, dtype: torch.dtype, folder: Path | None = None) -> nn.Module:
        """From ``folder``, from its own weights, or made from the transformer. Raises ModelUnavailable, InvalidOptions."""
        if folder is None and self.spec.components[CONTROLNET].is_made:
            assert self.spec.steers is not None
            make = PixArtControlNetAdapterModel.from_transformer
            return new_controlnet(make, self.load_transformer(dtype), self.spec.steers, options)
        return load_controlnet(PixArtControlNetAdapterModel, part_in(folder) if folder else self.find(CONTROLNET), dtype)

    def make_scheduler(self, prediction_type: str, sampler: str | None = None, spacing: str | None = None) -> SchedulerMixin:
        """The base model's own sampler, or the one called so, on the base model's noise schedule; ``spacing`` of its timesteps."""
        config = self.scheduler_config()
        name, needs = SAMPLERS[sampler] if sampler else (str(config.get("_class_name")), {})
        spaced = {"timestep_spacing": spacing} if spacing else {}
        return make_scheduler(config, name, {**needs, **spaced, "prediction_type": prediction_type}, self.base.name)
