"""The mask of the prompt, as the transformer of diffusers uses it in ``ChromaPipeline``, with gradient checkpointing as well."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from diffusers.models.transformers.transformer_chroma import ChromaSingleTransformerBlock
from torch import Tensor, nn


def seen_tokens(real: Tensor) -> Tensor:
    """(B, T), 1 for the tokens of a prompt -> (B, T), 1 for these and the first one of the padding, which the network learned to see."""
    return (torch.arange(real.shape[1]) <= real.sum(dim=1, keepdim=True)).to(real)


def attention_mask(seen: Tensor, image_tokens: int) -> Tensor:
    """(B, T) -> (B, T + image_tokens) in the same floating-point type; the tokens of the image are all 1.

    NOTE: the blocks multiply the mask of the query with that of the key, and add the product to their scores. Numbers are no truth values
    there: a score gets 1 if both tokens are marked and 0 otherwise. Padding counts less, but it counts. A boolean mask would hide it, and
    the network would be trained to compute something else than ``ChromaPipeline`` generates with.
    """
    return torch.cat([seen, seen.new_ones(len(seen), image_tokens)], dim=1)


class MaskOfSingleBlocks:
    """Hands the mask of a pass to the single blocks that are computed again for their gradients.

    NOTE: the transformer of diffusers gives its mask to these blocks without gradient checkpointing, and none with it. Here the mask
    becomes an argument of the block that is computed again: another pass before the backward pass changes nothing.
    """

    mask: Tensor | None = None

    def __init__(self, recompute: Callable[..., Any]) -> None:
        """``recompute(block, *arguments)`` is what the network calls its blocks with."""
        self.recompute = recompute

    @classmethod
    def give(cls, network: nn.Module) -> None:
        """Makes a transformer compute with gradient checkpointing what it computes without. Does nothing for one that has none."""
        transformer = cast("Any", network)
        if transformer.gradient_checkpointing:
            masks = cls(transformer._gradient_checkpointing_func)
            transformer._gradient_checkpointing_func = masks.call
            transformer.register_forward_pre_hook(masks.see, with_kwargs=True)

    def see(self, network: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        """Called before each pass."""
        self.mask = named.get("attention_mask")

    def call(self, block: nn.Module, *arguments: Any) -> Any:
        """Calls a block, with the mask as the fourth argument if it is a single block that got three."""
        lacks_mask = isinstance(block, ChromaSingleTransformerBlock) and len(arguments) == 3
        return self.recompute(block, *arguments, *([self.mask] if lacks_mask else []))
