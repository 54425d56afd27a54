"""Stable Diffusion 2 as the trainer sees it."""

from __future__ import annotations

from trainer_engine.families.common.stable_diffusion import StableDiffusion
from trainer_engine.families.sd2x.spec import SPEC


class StableDiffusion2(StableDiffusion):
    """The network of Stable Diffusion 1 with the text encoder OpenCLIP ViT-H; most of its weights predict the velocity."""

    spec = SPEC


FAMILY = StableDiffusion2
