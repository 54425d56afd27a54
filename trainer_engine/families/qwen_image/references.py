"""References in the sequence of the network: their tokens follow those of the image that is generated."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from trainer_engine.families.common.latent_squares import CELLS, packed

Shape = tuple[int, int, int]
"""(frames, rows, columns) of an image in tokens, from which the network makes positions."""


def shapes_of(images: Sequence[Tensor]) -> list[Shape]:
    """The shapes of images (B, C, h_i, w_i) in one sequence."""
    return [(1, image.shape[-2] // CELLS, image.shape[-1] // CELLS) for image in images]


@contextmanager
def beside(network: nn.Module, references: Sequence[Tensor]) -> Iterator[None]:
    """Each pass of the network has the tokens of references (1, C, h_i, w_i) behind those that it is given, and drops their output."""
    if not references:
        yield
        return
    tokens, shapes = packed(references), shapes_of(references)

    def longer(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        own = kwargs["hidden_states"]
        joined = torch.cat([own, tokens.to(own).expand(len(own), -1, -1)], dim=1)
        return args, {**kwargs, "hidden_states": joined, "img_shapes": [[*one, *shapes] for one in kwargs["img_shapes"]]}

    def shorter(_: nn.Module, __: tuple[Any, ...], output: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (output[0][:, : output[0].shape[1] - tokens.shape[1]], *output[1:])

    hooks = [network.register_forward_pre_hook(longer, with_kwargs=True), network.register_forward_hook(shorter)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
