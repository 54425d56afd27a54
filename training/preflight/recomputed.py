"""What the blocks of a network keep for the backward pass, with the options that recompute some of it or move it to the host."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count

from trainer_engine.config.options import TrainingOptions

FEED_FORWARD = re.compile(r"\.(?:ff|ffn|ff_context|ff_[it]|feed_forward|img_mlp|txt_mlp|(?<=\d\.)mlp)\.")
"""In the names of layers: the feed-forward part of a block. Embeddings of timesteps have an ``mlp`` too, which is in no block."""
ATTENTION = re.compile(r"\.(?:attn\w*|(?:self_|cross_)?attention)\.")
SPLIT = re.compile(r"\.(?:to_qkv_mlp_proj|linear_in)$")
"""Layers whose output is cut into views. The gradient of each view is as large as all of them until they are added up."""
SPLIT_BACKWARD = 2.4
"""What lives while those gradients are added up, as a multiple of the output."""
SPLIT_RECOMPUTED = 4.2
"""The same, with what the block itself still keeps: its output, the activated half, and queries, keys and values."""


@dataclass(frozen=True)
class BlockNumbers:
    """Numbers (not bytes) that one block keeps."""

    input: float
    """What is kept of a block that is recomputed."""
    whole: float
    """What is kept of a block that is not."""
    feed_forward: float = 0
    """Part of ``whole`` that belongs to the feed-forward layers."""
    attention: float = 0
    split: float = 0
    """Output of the widest layer whose parts are views (``SPLIT``)."""
    can_recompute: bool = True
    """Whether the network has a checkpoint at the block."""


def kept_of_blocks(blocks: Sequence[BlockNumbers], options: TrainingOptions, backward: float = 1.0) -> float:
    """Returns the numbers on the device when the backward pass is at the block that keeps the most.

    ``backward``: what the backward pass of a recomputed block needs, as a multiple of what the block keeps.
    """
    chosen = _recomputed(blocks, options)
    needed = (_needed_at(block, options, backward, is_recomputed=one) for block, one in zip(blocks, chosen, strict=True))
    return waiting(blocks, options) + max(needed, default=0)


def kept_at_last(blocks: Sequence[BlockNumbers], options: TrainingOptions) -> float:
    """Returns the numbers on the device when the backward pass is at the last of these blocks, of which there is one at least."""
    return waiting(blocks, options) + _needed_at(blocks[-1], options, is_recomputed=_recomputed(blocks, options)[-1])


def waiting(blocks: Sequence[BlockNumbers], options: TrainingOptions) -> float:
    """Returns the numbers on the device while the backward pass of none of these blocks has begun."""
    memory, kept = options.memory, 0.0
    inputs: list[float] = []
    for block, chosen in zip(blocks, _recomputed(blocks, options), strict=True):
        if chosen:
            inputs.append(block.input)
        if not chosen or memory.recomputes_parts:
            part = block.feed_forward if chosen else 0
            kept += block.whole - part - (block.attention if memory.gradient_checkpointing_offload_attention else 0)
    return kept + (max(inputs, default=0) if memory.offloads_inputs else sum(inputs))


def _needed_at(block: BlockNumbers, options: TrainingOptions, backward: float = 1.0, *, is_recomputed: bool) -> float:
    """Returns the numbers that the backward pass needs at a block, above those that wait."""
    parts = options.memory.recomputes_parts
    passing = block.split * (SPLIT_RECOMPUTED if is_recomputed and not parts else SPLIT_BACKWARD)
    part = block.feed_forward if parts else block.whole
    return max(passing, part * backward if is_recomputed else 0)


def _recomputed(blocks: Sequence[BlockNumbers], options: TrainingOptions) -> list[bool]:
    """Whether each block is recomputed. Those without a checkpoint are not counted in ``gradient_checkpointing_interval``."""
    numbers = count()
    return [options.model.gradient_checkpointing and one.can_recompute and options.memory.recomputes(next(numbers)) for one in blocks]
