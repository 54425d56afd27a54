"""Gradient checkpointing of the blocks before the joint ones, which the network of diffusers leaves out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from diffusers import Lumina2Transformer2DModel
from torch import Tensor, nn


class RecomputedRefiner:
    """The forward pass of a block, computed again in the backward pass as the other blocks of its network are.

    NOTE: the blocks of ``noise_refiner`` see as many tokens of the image as a joint block does, and would keep all their activations.
    """

    def __init__(self, network: nn.Module, block: nn.Module) -> None:
        self.network = network
        self.body = BlockBody(block, block.forward)

    @classmethod
    def give(cls, network: nn.Module) -> None:
        """Does nothing for a network without gradient checkpointing."""
        transformer = cast("Lumina2Transformer2DModel", network)
        if transformer.gradient_checkpointing:
            for block in (*transformer.context_refiner, *transformer.noise_refiner):
                block.forward = cls(network, block)

    def __call__(self, *arguments: Any) -> Tensor:
        if not torch.is_grad_enabled():
            return self.body(*arguments)
        output: Tensor = cast("Any", self.network)._gradient_checkpointing_func(self.body, *arguments)
        return output


class BlockBody:
    """What a block computes, as a function that equals its block: which blocks are recomputed is looked up by block."""

    def __init__(self, block: nn.Module, compute: Callable[..., Tensor]) -> None:
        self.block = block
        self.compute = compute

    def __call__(self, *arguments: Any) -> Tensor:
        return self.compute(*arguments)

    def __hash__(self) -> int:
        return hash(self.block)

    def __eq__(self, other: object) -> bool:
        return other is self or other is self.block
