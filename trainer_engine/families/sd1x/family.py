"""Stable Diffusion 1 as the trainer sees it."""

from __future__ import annotations

from trainer_engine.families.common.stable_diffusion import StableDiffusion
from trainer_engine.families.sd1x.spec import SPEC


class StableDiffusion1(StableDiffusion):
    """Rombach et al., 2022, "High-Resolution Image Synthesis with Latent Diffusion Models"."""

    spec = SPEC


FAMILY = StableDiffusion1
