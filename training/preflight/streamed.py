"""Which share of the frozen weights waits in the memory of the host."""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass

from trainer_engine.config.options.memory import MemoryOptions
from training.preflight.weights import Tensors, layer_count

BLOCK = re.compile(r"^(.*\b(?:\w*blocks(?:\.[a-z]\w*)?|layers|resnets)\.\d+)\.")
"""The innermost block that a tensor is part of."""
LEVEL = re.compile(r"(?:down|up)_blocks\.\d+$")
"""A level of a UNet, which is made of blocks and is none."""
LAYERS_OF_A_BLOCK = 10


@dataclass(frozen=True)
class Streamed:
    """Shares of the frozen weights of a network."""

    share: float
    """What waits on the host."""
    largest: float
    """The largest piece that is copied at once."""


def streamed_share(memory: MemoryOptions, parameters: int, tensors: Tensors | None) -> Streamed:
    """Without ``tensors`` the network is taken for blocks of equal size."""
    if not memory.streams_network:
        return Streamed(0, 0)
    blocks, layers = block_sizes(parameters, tensors), _layer_sizes(parameters, tensors)
    total = max(parameters, sum(blocks), 1)
    if memory.musubi_blocks_to_swap:
        share = min(1.0, memory.musubi_blocks_to_swap / len(blocks)) if blocks else 0
        return Streamed(share * sum(blocks) / total, max(blocks, default=0) / total)
    if memory.enable_group_offload and memory.group_offload_type == "block_level":
        group = min(len(blocks), memory.group_offload_blocks_per_group)
        return Streamed(sum(blocks) / total, group * max(blocks, default=0) / total)
    share = memory.ramtorch_transformer_percent / 100 if memory.ramtorch else 1.0
    return Streamed(share * sum(layers) / total, max(layers, default=0) / total)


def block_sizes(parameters: int, tensors: Tensors | None) -> list[int]:
    """Weights of each block that can wait on the host."""
    if not tensors:
        count = layer_count(parameters)
        return [parameters // count] * count
    sizes: Counter[str] = Counter()
    for name, shape in tensors.items():
        found = BLOCK.match(name)
        if found and not LEVEL.search(found[1]):
            sizes[found[1]] += math.prod(shape)
    return list(sizes.values())


def _layer_sizes(parameters: int, tensors: Tensors | None) -> list[int]:
    """Of linear layers, which hold nearly everything."""
    if tensors:
        return [math.prod(shape) for name, shape in tensors.items() if len(shape) == 2 and name.endswith(".weight")]
    return [size // LAYERS_OF_A_BLOCK for size in block_sizes(parameters, None) for _ in range(LAYERS_OF_A_BLOCK)]
