"""Latents as tokens of one cell, as Flux.2, FLUX.3 and Qwen-Image 2.1 see them; with a position in four axes, as the first two do."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def packed(images: Sequence[Tensor]) -> Tensor:
    """(B, N, C): one token a latent cell of images (B, C, h_i, w_i) in this order, row by row."""
    return torch.cat([image.flatten(2).transpose(1, 2) for image in images], dim=1)


def unpacked(tokens: Tensor, height: int, width: int) -> Tensor:
    """(B, N, C) -> (B, C, h, w): the first ``height * width`` tokens."""
    return tokens[:, : height * width].transpose(1, 2).reshape(len(tokens), -1, height, width)


def image_positions(
    sizes: Sequence[tuple[int, int]], device: torch.device, *, apart: tuple[int, int], first: int = 0, scale: float = 1
) -> Tensor:
    """(N, 4) for images of these sizes in latent cells: place in time, row, column, place in the text.

    ``apart``: how far each image is from the one before it, in time and in the text; ``first`` is the number of the first one.
    ``scale``: distance of two rows or columns.
    """
    grids = [
        torch.cartesian_prod(
            torch.tensor([apart[0] * number]), torch.arange(height), torch.arange(width), torch.tensor([apart[1] * number])
        )
        for number, (height, width) in enumerate(sizes, start=first)
    ]
    positions = torch.cat(grids)
    return (positions if scale == 1 else positions * torch.tensor([1, scale, scale, 1])).to(device)


def prompt_positions(length: int, device: torch.device) -> Tensor:
    """(T, 4) for the tokens of a prompt: 0, 0, 0, number of the token."""
    numbers = torch.arange(length, device=device)
    return torch.stack([torch.zeros_like(numbers)] * 3 + [numbers], dim=1)
