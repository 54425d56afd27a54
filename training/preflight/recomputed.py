"""What the blocks of a network keep for the backward pass, with the options that recompute some of it or move it to the host."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count

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
    can_recompute: bool = True
    """Whether the network has a checkpoint at the block."""


def kept_of_blocks(blocks: Sequence[BlockNumbers], options: TrainingOptions, backward: float = 1.0) -> float:
    """Returns the numbers on the device when the backward pass is at the block that keeps the most.

    ``backward``: what the backward pass of a recomputed block needs, as a multiple of what the block keeps.
    """
    memory = options.memory
    kept, largest, passing = 0.0, 0.0, 0.0
    inputs: list[float] = []
    numbers = count()
    for block in blocks:
        chosen = options.model.gradient_checkpointing and block.can_recompute and memory.recomputes(next(numbers))
        part = block.feed_forward if memory.recomputes_parts else block.whole
        if chosen:
            inputs.append(block.input)
            largest = max(largest, part * backward)
        passing = max(passing, block.split * (SPLIT_RECOMPUTED if chosen and not memory.recomputes_parts else SPLIT_BACKWARD))
        if not chosen or memory.recomputes_parts:
            kept += block.whole - (part if chosen else 0) - (block.attention if memory.gradient_checkpointing_offload_attention else 0)
    on_device = max(inputs, default=0) if memory.offloads_inputs else sum(inputs)
    return kept + on_device + max(largest, passing)
