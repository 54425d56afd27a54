"""What a network takes in: the embeddings of prompts, and all inputs of one step as one value."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

PromptEmbedding = dict[str, Tensor]
"""Output of the text encoders for one prompt: named tensors without a batch dimension, as the cache stores them."""
PromptBatch = dict[str, Tensor]
"""Embeddings of a batch: named tensors, batch dimension first."""
Conditions = dict[str, Tensor]
"""Further inputs by name, one row a sample: (B, ...). The names are the family's own."""


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
    """Result of ``Family.conditions``."""
    references: tuple[Tensor, ...] = ()
    """Scaled latents (B, C, ...) of reference images, one tensor a reference; each may have a size of its own."""
    control: Tensor | None = None
    """Scaled latents (B, C, ...) of the control image of a ControlNet; None without one."""
