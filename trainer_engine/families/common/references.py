"""Reference images of a generated one: as pictures for a text encoder, and as tokens in the sequence of the network."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from trainer_engine.families.common.latent_squares import packed

Given = Mapping[str, Any]
"""Arguments of a pass of a network by name."""


def picture_of(pixels: Tensor) -> Image.Image:
    """(3, H, W) in [-1, 1] -> an image of the same size."""
    bright = pixels.clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8)
    return Image.fromarray(bright.permute(1, 2, 0).numpy())


@contextmanager
def beside(network: nn.Module, references: Sequence[Tensor], placed: Callable[[Given], Given]) -> Iterator[None]:
    """Each pass of the network has the tokens of references (1, C, h_i, w_i) behind those that it is given, and drops their output.

    ``placed``: the arguments of a pass -> those of them that give the tokens their places, with the places of the references.
    """
    if not references:
        yield
        return
    tokens = packed(references)

    def longer(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        own = kwargs["hidden_states"]
        joined = torch.cat([own, tokens.to(own).expand(len(own), -1, -1)], dim=1)
        return args, {**kwargs, **placed(kwargs), "hidden_states": joined}

    def shorter(_: nn.Module, __: tuple[Any, ...], output: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (output[0][:, : output[0].shape[1] - tokens.shape[1]], *output[1:])

    hooks = [network.register_forward_pre_hook(longer, with_kwargs=True), network.register_forward_hook(shorter)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
