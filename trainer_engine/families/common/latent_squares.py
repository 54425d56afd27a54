"""Latents as tokens of 2 x 2 cells, as Flux.1 and Qwen-Image see them."""

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
