"""Estimates the activations that a UNet keeps for its backward pass, from the shapes of its convolutions and linear layers."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from trainer_engine.config.family_spec import FamilySpec
from trainer_engine.config.options import TrainingOptions
from trainer_engine.config.precisions import PRECISIONS, QUANTISED
from training.preflight.recomputed import ATTENTION, FEED_FORWARD, BlockNumbers, kept_of_blocks

Layers = Mapping[str, tuple[int, ...]]
"""Module name -> (out, in, *kernel)."""

BLOCK = re.compile(r"^(down|up)_blocks\.(\d+)\.")
CONTROL = re.compile(r"^controlnet_cond_embedding\.(?:conv_in|blocks\.(\d+))$")
"""Layers of a ControlNet that see the pixels of its image."""
UNIT = re.compile(r"^.*\b(?:resnets|transformer_blocks)\.\d+(?=\.)")
"""Parts that gradient checkpointing recomputes as one."""
PROMPT_SIDE = re.compile(r"\battn2\.to_[kv]$")
KEPT: tuple[tuple[re.Pattern[str], float, float], ...] = (
    (re.compile(r"time_emb|add_embedding|class_embedding|encoder_hid_proj|conv_shortcut$|^controlnet_(?:down|mid)_block"), 0, 0),
    (re.compile(r"^controlnet_cond_embedding\.conv_out$"), 0, 0),
    (re.compile(r"^controlnet_cond_embedding\."), 0, 2),
    (re.compile(r"\bresnets\.\d+\.conv\d$|^conv_out$"), 3, 0),
    (re.compile(r"\.proj_in$"), 2, 0),
    (re.compile(r"\.to_q$"), 2, 1),
    (re.compile(r"\.to_[kv]$"), 0, 1),
    (re.compile(r"\.ff\.net\.0\.proj$"), 2, 1.5),
    (re.compile(r""), 1, 0),
)
"""(Name of a layer, how often its input is kept, how often its output is kept); the first match counts.

Every layer keeps its input. A norm in front of it keeps one more tensor of that size, and an activation function between the two another.
Attention keeps queries, keys and values; its result is the input of the next layer. A gated unit keeps the projection and the activated
half of it. A shortcut shares its input with the first norm. Layers that see one vector a sample keep next to nothing.
"""
KEPT_SHARE: Mapping[str, float] = {"full": 1.0, "standard": 0.85, "lycoris": 1.0}
"""What is trained -> share of those numbers that is kept. Frozen linear layers keep no input; frozen convolutions and norms do."""


@dataclass(frozen=True)
class UnetInputs:
    """Sizes of one micro-batch."""

    cells: int
    """Positions of the latents of all samples at full resolution."""
    prompt_tokens: int
    """Tokens of the prompts of all samples."""


def is_unet(layers: Layers) -> bool:
    """Returns whether the network has the blocks of the UNets of diffusers."""
    return any(BLOCK.match(name) and len(shape) == 4 for name, shape in layers.items())


def kept_by_unet(layers: Layers, inputs: UnetInputs, options: TrainingOptions, spec: FamilySpec) -> int:
    """Returns the numbers (not bytes) that are alive when the backward pass of this run begins."""
    is_full, quantised = options.model.model_type == "full", options.precision.base_model_precision
    share = KEPT_SHARE["full" if is_full else options.adapter.lora_type]
    if options.model.gradient_checkpointing or (quantised in QUANTISED and PRECISIONS[quantised].library == "quanto"):
        share = 1.0  # the inputs of units are kept whatever is trained, and quanto's layers keep their own
    numbers = unet_numbers(layers, inputs, options)
    return int(numbers * share * spec.activation_share)


def unet_numbers(layers: Layers, inputs: UnetInputs, options: TrainingOptions) -> int:
    """As ``kept_by_unet``, if every weight is trained. Gradient checkpointing keeps the inputs of all units and one unit as a whole."""
    levels = _Levels(layers)
    outside = 0.0
    borders: dict[str, int] = {}
    units: dict[str, float] = defaultdict(float)
    parts: dict[tuple[str, re.Pattern[str]], float] = defaultdict(float)
    for name, shape in layers.items():
        cells = inputs.prompt_tokens if PROMPT_SIDE.search(name) else math.ceil(inputs.cells / 4 ** levels.of(name))
        of_input, of_output = next((of_input, of_output) for pattern, of_input, of_output in KEPT if pattern.search(name))
        kept = cells * (of_input * shape[1] + of_output * shape[0])
        unit = UNIT.match(name)
        if unit is None:
            outside += kept
            continue
        borders.setdefault(unit[0], cells * shape[1])
        units[unit[0]] += kept
        for pattern in (FEED_FORWARD, ATTENTION):
            parts[unit[0], pattern] += kept if pattern.search(f"{name}.") else 0
    blocks = [BlockNumbers(borders[unit], kept, parts[unit, FEED_FORWARD], parts[unit, ATTENTION]) for unit, kept in units.items()]
    return int(outside + kept_of_blocks(blocks, options))


class _Levels:
    """Finds how often the input of a layer was halved: a block with a downsampler halves once, one with an upsampler doubles once."""

    def __init__(self, layers: Layers) -> None:
        self._down = {int(match[1]) for name in layers if (match := re.match(r"down_blocks\.(\d+)\.downsamplers\.", name))}
        self._halvings = sum(name.startswith("controlnet_cond_embedding.blocks.") for name in layers) // 2
        self._up = {int(match[1]) for name in layers if (match := re.match(r"up_blocks\.(\d+)\.upsamplers\.", name))}

    def of(self, name: str) -> int:
        block, control = BLOCK.match(name), CONTROL.match(name)
        if control:  # every second layer halves an image, until it has the size of the latents
            return (int(control[1]) + 1) // 2 - self._halvings if control[1] else -self._halvings
        if block is None:
            return len(self._down) if name.startswith("mid_block.") else 0
        index = int(block[2])
        if block[1] == "down":
            return sum(one < index for one in self._down)
        # An upsampler doubles the image before its convolution.
        return len(self._down) - sum(one < index for one in self._up) - (".upsamplers." in name)
