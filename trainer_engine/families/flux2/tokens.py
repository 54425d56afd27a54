"""Latents as the sequence of tokens that the network sees, each with a position in four axes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

REFERENCE_DISTANCE = 10
"""Distance of each reference from the image before it, along the first axis."""


def packed(images: Sequence[Tensor]) -> Tensor:
    """(B, N, C): one token a latent cell of what is generated (B, C, h, w), then of its references (B, C, h_i, w_i), row by row."""
    return torch.cat([image.flatten(2).transpose(1, 2) for image in images], dim=1)


def unpacked(tokens: Tensor, height: int, width: int) -> Tensor:
    """(B, N, C) -> (B, C, h, w): the first ``height * width`` tokens."""
    return tokens[:, : height * width].transpose(1, 2).reshape(len(tokens), -1, height, width)


def image_positions(sizes: Sequence[tuple[int, int]], device: torch.device) -> Tensor:
    """(N, 4) for images of these sizes in latent cells: place of the image in time, row, column, 0."""
    grids = [
        torch.cartesian_prod(torch.tensor([REFERENCE_DISTANCE * number]), torch.arange(height), torch.arange(width), torch.arange(1))
        for number, (height, width) in enumerate(sizes)
    ]
    return torch.cat(grids).to(device)


def prompt_positions(length: int, device: torch.device) -> Tensor:
    """(T, 4) for the tokens of a prompt: 0, 0, 0, number of the token."""
    numbers = torch.arange(length, device=device)
    return torch.stack([torch.zeros_like(numbers)] * 3 + [numbers], dim=1)
