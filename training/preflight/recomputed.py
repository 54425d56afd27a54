"""What the blocks of a network keep for the backward pass, with the options that recompute some of it or move it to the host."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from trainer_engine.config.options import TrainingOptions

FEED_FORWARD = re.compile(r"\.(?:ff|ffn|ff_context|img_mlp|txt_mlp)\.")
"""In the names of layers: the feed-forward part of a block."""
ATTENTION = re.compile(r"\.attn\w*\.")
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


def kept_of_blocks(blocks: Sequence[BlockNumbers], options: TrainingOptions, backward: float = 1.0) -> float:
    """Returns the numbers on the device when the backward pass is at the block that keeps the most.

    ``backward``: what the backward pass of a recomputed block needs, as a multiple of what the block keeps.
    """
    return waiting(blocks, options) + max((needed_at(block, index, options, backward) for index, block in enumerate(blocks)), default=0)


def waiting(blocks: Sequence[BlockNumbers], options: TrainingOptions) -> float:
    """Returns the numbers on the device while the backward pass of none of these blocks has begun."""
    memory, kept = options.memory, 0.0
    inputs: list[float] = []
    for index, block in enumerate(blocks):
        chosen = _is_recomputed(index, options)
        if chosen:
            inputs.append(block.input)
        if not chosen or memory.recomputes_parts:
            part = block.feed_forward if chosen else 0
            kept += block.whole - part - (block.attention if memory.gradient_checkpointing_offload_attention else 0)
    return kept + (max(inputs, default=0) if memory.offloads_inputs else sum(inputs))


def needed_at(block: BlockNumbers, index: int, options: TrainingOptions, backward: float = 1.0) -> float:
    """Returns the numbers that the backward pass needs at the block with this ``index``, above those that wait."""
    is_whole = _is_recomputed(index, options) and not options.memory.recomputes_parts
    passing = block.split * (SPLIT_RECOMPUTED if is_whole else SPLIT_BACKWARD)
    part = block.feed_forward if options.memory.recomputes_parts else block.whole
    return max(passing, part * backward if _is_recomputed(index, options) else 0)


def _is_recomputed(index: int, options: TrainingOptions) -> bool:
    return options.model.gradient_checkpointing and options.memory.recomputes(index)
