"""Estimates the activations that a UNet keeps for its backward pass, from the shapes of its convolutions and linear layers."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from trainer_engine.config.family_spec import FamilySpec
from trainer_engine.config.options import TrainingOptions
from trainer_engine.config.precisions import PRECISIONS, QUANTISED
from training.preflight.adapter import adapted_layers
from training.preflight.adapter_inputs import own_inputs
from training.preflight.recomputed import ATTENTION, FEED_FORWARD, BlockNumbers, kept_at_last, waiting

Layers = Mapping[str, tuple[int, ...]]
"""Module name -> (out, in, *kernel)."""

BLOCK = re.compile(r"^(down|up)_blocks\.(\d+)\.")
CONTROL = re.compile(r"^controlnet_cond_embedding\.(?:conv_in|blocks\.(\d+))$")
"""Layers of a ControlNet that see the pixels of its image."""
UNIT = re.compile(r"^.*\b(?:resnets|transformer_blocks)\.\d+(?=\.)")
"""Parts that gradient checkpointing recomputes as one."""
SIDES = ("down", "mid", "up")
PARTS = (None, "proj_in", "transformer_blocks", "proj_out")
PLACE = re.compile(r"^(down|mid|up)_blocks?\.(?:(\d+)\.)?(\w+)\.(\d+)\.(?:(proj_in|transformer_blocks|proj_out)\b)?(?:\.(\d+)\.)?")
"""(Side, number of the block, kind of its part, number of that, part of an attention, number of its block)"""
GATED = re.compile(r"\.ff\.net\.0\.proj$")
"""Layers whose output is cut into a value and its gate."""
PROJECTION = re.compile(r"\.proj_(?:in|out)$")
"""Layers around the units of an attention. Frozen ones keep no input if they are linear."""
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
    keeps_own = quantised in QUANTISED and PRECISIONS[quantised].library == "quanto"
    if options.model.gradient_checkpointing or keeps_own:
        share = 1.0  # the inputs of units are kept whatever is trained, and quanto's layers keep their own
    share *= spec.activation_share
    added = {name: numbers / share for name, numbers in own_inputs(layers, options, spec).items()}
    if options.model.gradient_checkpointing and not is_full and not keeps_own and options.adapter.lora_type == "standard":
        adapted = adapted_layers(options, spec, layers)
        added |= {name: -shape[1] for name, shape in layers.items() if len(shape) == 2 and PROJECTION.search(name) and name not in adapted}
    return int(unet_numbers(layers, inputs, options, added) * share)


def unet_numbers(layers: Layers, inputs: UnetInputs, options: TrainingOptions, added: Mapping[str, float] = MappingProxyType({})) -> int:
    """As ``kept_by_unet``, if every weight is trained. ``added``: layer -> numbers that it keeps beyond ``KEPT`` for each position.

    The backward pass frees what it has gone through: at each unit, what was computed before it is still there. Gradient checkpointing
    keeps the inputs of these units, and the unit that the backward pass is at as a whole.
    """
    most, outside = 0.0, 0.0
    blocks: list[BlockNumbers] = []
    for unit, numbers in _numbers_of_units(layers, inputs, added).items():
        if not UNIT.match(f"{unit}."):
            outside += numbers.whole
            most = max(most, outside + waiting(blocks, options))
            continue
        blocks.append(numbers)
        most = max(most, outside + kept_at_last(blocks, options))
    return int(most)


def _numbers_of_units(layers: Layers, inputs: UnetInputs, added: Mapping[str, float]) -> dict[str, BlockNumbers]:
    """Unit, or layer outside of all, -> what it keeps. In the order of the forward pass."""
    levels = _Levels(layers)
    found: dict[str, BlockNumbers] = {}
    for name, shape in sorted(layers.items(), key=lambda layer: _place(layer[0])):
        cells = inputs.prompt_tokens if PROMPT_SIDE.search(name) else math.ceil(inputs.cells / 4 ** levels.of(name))
        of_input, of_output = next((of_input, of_output) for pattern, of_input, of_output in KEPT if pattern.search(name))
        kept = cells * (of_input * shape[1] + of_output * shape[0] + added.get(name, 0))
        unit = UNIT.match(name)
        key = unit[0] if unit else name
        before = found.get(key, BlockNumbers(input=cells * shape[1], whole=0))
        split = cells * shape[0] if GATED.search(name) else 0
        found[key] = replace(
            before,
            whole=before.whole + kept,
            feed_forward=before.feed_forward + (kept if FEED_FORWARD.search(f"{name}.") else 0),
            attention=before.attention + (kept if ATTENTION.search(f"{name}.") else 0),
            split=max(before.split, split),
        )
    return found


def _place(name: str) -> tuple[int, ...]:
    """Where the forward pass computes this layer: a number for each part of its name."""
    found = PLACE.match(name)
    if found is None:
        return (len(SIDES) if name.startswith("conv_out") else -1,)
    side, block, kind, number, part, index = found.groups()
    is_last = kind not in ("resnets", "attentions")  # what halves or doubles the image
    return (SIDES.index(side), int(block or 0), is_last, int(number), kind == "attentions", PARTS.index(part), int(index or 0))


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
