"""The positions of the tokens that the network sees, and where their attention goes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from trainer_engine.families.common.latent_squares import CELLS


def positions(height: int, width: int, image: int = 0) -> Tensor:
    """(h/2 w/2, 3): number of the image (0 is the generated one), row, column. ``height`` and ``width`` in latent cells."""
    rows, columns = torch.meshgrid(torch.arange(height // CELLS), torch.arange(width // CELLS), indexing="ij")
    return torch.stack([torch.full_like(rows, image), rows, columns], dim=-1).reshape(-1, 3).float()


def positions_of(sizes: Sequence[tuple[int, int]], device: torch.device, dtype: torch.dtype) -> Tensor:
    """(N, 3) positions on ``device`` of images of these sizes, (h_i, w_i) in latent cells; each has an image number of its own."""
    return torch.cat([positions(height, width, number) for number, (height, width) in enumerate(sizes)]).to(device, dtype)


def attention_mask(prompt: Tensor, image_tokens: int) -> Tensor:
    """(B, T) of 1 for real tokens -> (B, 1, 1, T + image_tokens), true where attention may go; prompts come first."""
    seen = torch.cat([prompt.bool(), prompt.new_ones(len(prompt), image_tokens, dtype=torch.bool)], dim=1)
    return seen[:, None, None]
