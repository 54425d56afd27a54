"""What a network takes in: embeddings of prompts, facts of samples, and all inputs of one step as one value."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from trainer_engine.datasets.crops import crop_window
from trainer_engine.datasets.geometry import Size
from trainer_engine.datasets.samples import Sample

PromptEmbedding = dict[str, Tensor]
"""Output of the text encoders for one prompt: named tensors without a batch dimension, as the cache stores them."""
PromptBatch = dict[str, Tensor]
"""Embeddings of a batch: named tensors, batch dimension first, or one for each prompt where the network takes prompts without padding."""
Conditions = dict[str, Tensor]
"""Further inputs by name, one row a sample: (B, ...). The names are the family's own."""

STORED = torch.bfloat16
"""Type of the states of prompts in caches and batches where a family stores short ones (``PromptSpec.stores_short``, ``stacked_layers``). A
number that an encoder computed in float32 is rounded by at most 2^-8 of its size."""
NEGATIVE = "\0"
"""What the text of a negative prompt begins with where the text encoder reads it in another way. No caption has this character."""


def as_negative(text: str) -> str:
    """The text under which such a negative prompt is encoded and cached; an empty one is that of caption dropout."""
    return NEGATIVE + text if text else text


def is_negative(text: str) -> bool:
    return text.startswith(NEGATIVE)


@dataclass(frozen=True, kw_only=True)
class SampleFacts:
    """What is known of a sample in addition to its pixels and its caption. Sizes are (width, height) in pixels."""

    original_size: Size
    """Size of the file's image, after the EXIF orientation."""
    crop_corner: tuple[int, int]
    """(left, top) of the trained part in the resized image."""
    target_size: Size
    """Size of the trained part."""
    frames: int = 1
    frame_rate: float | None = None
    """Frames a second; None for an image."""

    @classmethod
    def of(cls, sample: Sample, crop_seed: int) -> SampleFacts:
        """Facts of a sample; ``crop_seed`` places random crops, as it did when the latents were cached."""
        return cls(
            original_size=(sample.width, sample.height),
            crop_corner=crop_window(sample, crop_seed),
            target_size=sample.target,
            frames=sample.frames,
            frame_rate=sample.frame_rate,
        )


@dataclass(frozen=True, kw_only=True)
class StepInputs:
    """All inputs of one call of ``Family.predict``. Tensors may lie on any device; ``predict`` moves them."""

    noisy_latents: Tensor
    """(B, C, ...) x_t."""
    timesteps: Tensor
    """(B,) indices of a diffusion schedule, or sigma in [0, 1] for flow matching."""
    prompts: PromptBatch
    """Result of ``Family.collate_prompts``."""
    conditions: Conditions = field(default_factory=dict)
    """Result of ``Family.conditions``, and the cached inputs of ``Family.encode_conditions``."""
    references: tuple[Tensor, ...] = ()
    """Scaled latents (B, C, ...) of reference images, one tensor a reference; each may have a size of its own."""
    control: Tensor | None = None
    """What a ControlNet or a widened network looks at: pixels (B, 3, H, W) in [0, 1], or scaled latents (B, C, h, w), as the family says;
    None without one."""
