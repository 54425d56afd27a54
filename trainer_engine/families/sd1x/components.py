"""Samplers and components of Stable Diffusion 1."""

from trainer_engine.families.common.samplers import SAMPLERS
from trainer_engine.families.common.stable_diffusion import StableDiffusionComponents

__all__ = ["SAMPLERS", "StableDiffusionComponents"]
