"""What a family is asked to generate, and what it reports while it does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from trainer_engine.config.skipped_layers import SkippedLayers
from trainer_engine.families.inputs import PromptEmbedding


@dataclass(frozen=True, kw_only=True)
class GenerationRequest:
    """One image or clip to generate."""

    prompt: PromptEmbedding
    negative: PromptEmbedding
    width: int
    """Pixels, like ``height``."""
    height: int
    steps: int
    guidance: float
    seed: int
    text: str = ""
    """The prompt in words, for a second network with text encoders of its own."""
    negative_text: str = ""
    frames: int = 1
    """Frames of a clip, of a length that the family's ``ClipSpec`` allows; 1 is an image."""
    references: tuple[Tensor, ...] = ()
    """Scaled latents (C, h, w) of its reference images."""
    noise_device: str = "cpu"
    """Device that samples the noise; the same seed gives other noise on another kind of device."""
    guidance_rescale: float = 0.0
    """Ignored by families whose spec does not name ``validation_guidance_rescale``."""
    control: Image.Image | None = None
    """What a ControlNet or a widened network looks at, of the size of the image; None without one."""
    first_frame: Image.Image | None = None
    """The image that a clip begins with, of any size; None for families that are given none."""
    reference: Image.Image | None = None
    """The reference that the network sees in further channels, of any size; None for families that see references otherwise."""
    true_guidance: float = 1.0
    """Classifier-free guidance in addition to the guidance input of a distilled network; 1 is none. Ignored by families whose spec does
    not name ``validation_guidance_real``."""
    unguided_steps: int = 0
    """Sampler steps at the start without ``true_guidance``."""
    skipped_layers: SkippedLayers | None = None
    """Blocks that the unguided prediction leaves out. Ignored by families whose spec does not name ``validation_guidance_skip_layers``."""

    def generator(self) -> torch.Generator:
        """A new generator for the image's noise."""
        return torch.Generator(self.noise_device).manual_seed(self.seed)


@dataclass(frozen=True)
class SamplerStep:
    """An image after one step of the sampler."""

    number: int
    """From 1."""
    timestep: float
    """Timestep of the step, in the sampler's own scale: up to 1000, or the number of timesteps of a longer noise schedule."""
    latents: Tensor
    """(1, C, ...), scaled as the network takes them."""


class StepReport:
    """What a pipeline of diffusers calls after each step (``callback_on_step_end``). Exceptions of ``on_step`` pass through.

    It counts by itself: the pipelines' own numbers start later where the sampler of the base model warms up.
    """

    def __init__(self, on_step: Callable[[SamplerStep], None] | None, layout: Callable[[Tensor], Tensor] = lambda latents: latents) -> None:
        """``layout`` gives the latents of the pipeline the shape (1, C, h, w)."""
        self._on_step = on_step
        self._layout = layout
        self._latents: Tensor | None = None
        self.steps = 0
        """Those that were taken."""

    def __call__(self, _pipeline: Any, _index: int, timestep: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        self._latents = tensors["latents"]
        self.steps += 1
        if self._on_step is not None:
            self._on_step(SamplerStep(self.steps, float(timestep), self.latents))
        return {}

    @property
    def latents(self) -> Tensor:
        """(1, C, h, w) after the last step."""
        assert self._latents is not None
        return self._layout(self._latents)


class LateGuidance(float):
    """The scale of a pipeline's classifier-free guidance, which is 1 for its first steps.

    NOTE: the pipelines take one scale for all steps, and use it once a step, as ``negative + scale * (positive - negative)``.
    """

    unguided_steps: int
    report: StepReport

    def __new__(cls, scale: float, unguided_steps: int, report: StepReport) -> LateGuidance:
        """``report`` counts the steps that were taken."""
        made = super().__new__(cls, scale)
        made.unguided_steps, made.report = unguided_steps, report
        return made

    def __mul__(self, difference: Any) -> Any:
        return difference if self.report.steps < self.unguided_steps else float(self) * difference
