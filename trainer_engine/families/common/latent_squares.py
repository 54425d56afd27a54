"""Latents as tokens of 2 x 2 cells, as Flux.1 and Qwen-Image see them; their positions and masks as Flux.1 has them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

CELLS = 2
"""Latent cells of a token, each way."""


def pack(latents: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, h/2 w/2, 4 C): squares of 2 x 2 cells, row by row."""
    batch, channels, height, width = latents.shape
    squares = latents.reshape(batch, channels, height // CELLS, CELLS, width // CELLS, CELLS)
    return squares.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, channels * CELLS * CELLS)


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """The inverse of ``pack``; ``height`` and ``width`` in latent cells."""
    batch, _, size = tokens.shape
    channels = size // (CELLS * CELLS)
    squares = tokens.reshape(batch, height // CELLS, width // CELLS, channels, CELLS, CELLS)
    return squares.permute(0, 3, 1, 4, 2, 5).reshape(batch, channels, height, width)


def packed(images: Sequence[Tensor]) -> Tensor:
    """(B, N, 4 C): the tokens of what is generated (B, C, h, w), then those of its references (B, C, h_i, w_i)."""
    return torch.cat([pack(image) for image in images], dim=1)


def token_count(latent_shape: Sequence[int]) -> int:
    """Tokens of latents (C, h, w)."""
    _, height, width = latent_shape
    return height * width // (CELLS * CELLS)


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
