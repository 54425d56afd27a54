"""The tokens of a step, and those that each block and each layer of a transformer computes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from trainer_engine.config.family_spec import FamilySpec
from trainer_engine.config.options import TrainingOptions
from trainer_engine.config.routing import parse_routes

BLOCK = re.compile(r"(?:^|\.)(\w*(?:blocks|refiner)(?:\.[a-z]\w*)?\.\d+|layers\.\d+)\.")
"""A block in a list, which may be one of several that have names: ``mode_blocks.image.3``."""
PER_SAMPLE = ("norm", "adaln", "adaLN", "embed", "_mod.", "modulation.")
"""Parts of the names of layers that see one vector a sample instead of one a token."""
FUSION = "text_fusion."
"""Part of the names of layers in blocks that make the states of the prompt from those of several layers of the text encoder. They are not
recomputed."""
LAYERWISE = "layerwise_blocks."
"""Part of the names of those that see the state of every stacked layer for each token."""
PROMPT_SIDE = ("add_", "context", "txt_", "ff_t.", "to_q_t", "to_k_t", "to_v_t", "to_out_t", FUSION)
"""Parts of the names of layers that see only the tokens of the prompt."""
IMAGE_SIDE = ("noise_refiner.", "mode_blocks.image.")
"""Parts of the names of layers that see only the tokens of the image."""
REFERENCE_SIDE = ("mode_blocks.image_cond.",)
"""Parts of the names of layers that see only the tokens of its references."""
CROSS_SIDE = re.compile(r"\b(?:attn2\.(to_[kv]|add_[kv]_proj)|cross_attention\.to_(key|value))$")
"""Layers of cross-attention that see the tokens of the prompt."""
TEXT_BLOCKS = "text_transformer_blocks."
"""Part of the names of blocks that see the tokens of a prompt which is no part of the image's sequence."""
MODULATION = re.compile(r"_stream_modulations\.(\w+)\.")
"""Layers outside of the blocks that make shifts, scales and gates for each token, and the tokens that they make them for."""
EXPERT = re.compile(r"\.experts\.\d+\.")
"""Layers of an expert of a mixture, which sees a part of the tokens."""
DEPTHWISE = 1.5
"""What is kept behind a convolution that computes each channel for itself, as a multiple of its output: the value and its gate, and the
activated gate."""
TEXT_PROJECTION = re.compile(r"\b(?:text_embedder|text_embeddings|caption_projection)\.")
"""Layers outside of the blocks that see the tokens of the prompt."""


@dataclass(frozen=True)
class Tokens:
    """Sizes of one micro-batch, over all samples."""

    image: int
    """Tokens of the image and of its reference images."""
    prompt: int
    """Tokens of the prompts; 0 if they are few, and only cross-attention sees them."""
    joined: bool = True
    """Whether prompts are part of the sequence of the image."""
    references: int = 0
    """Tokens of the reference images, among those of the image."""
    stacked: int = 1
    """States of the text encoder for each token of the prompt."""
    samples: int = 1
    """Samples of the micro-batch, over which all of these are counted."""
    passes: int = 1
    """Passes through the network that the samples are spread over: the backward pass recomputes the blocks of one at a time."""


def prompt_tokens(options: TrainingOptions, spec: FamilySpec) -> int:
    """Tokens that the network gets for one prompt that is as long as the family takes."""
    return spec.tokens_of(options.model.model_flavour, options.model.tokenizer_max_length) + spec.prompts.added_tokens


def routed_tokens(blocks: Iterable[str], tokens: Tokens, options: TrainingOptions, spec: FamilySpec) -> dict[str, Tokens]:
    """Block -> the tokens that it computes, for the blocks that some tokens skip (``tread_config``)."""
    routes, _ = parse_routes(options.objective.tread_config)
    if not routes or spec.routing is None:
        return {}
    order = [block for name in spec.routing.blocks for block in _numbered(blocks, name)]
    chosen = {order[index]: route for route in routes for index in route.within(len(order)) if 0 <= index < len(order)}
    return {block: replace(tokens, image=tokens.image - int(route.ratio * tokens.image)) for block, route in chosen.items()}


def _numbered(blocks: Iterable[str], name: str) -> list[str]:
    """Those of one list of blocks, in order."""
    return sorted((block for block in blocks if block.rpartition(".")[0] == name), key=lambda block: int(block.rpartition(".")[2]))


def sees_tokens(name: str) -> bool:
    """Whether a layer is in a block, and sees the tokens of a sequence and not one vector a sample."""
    found = BLOCK.search(f"{name}.")
    return found is not None and not any(mark in name.rpartition(found[1])[2] for mark in PER_SAMPLE)


def convolved(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, float]:
    """Convolution in a block of a transformer -> the numbers that it keeps for each token, frozen or not.

    It keeps its input. One that has more outputs than inputs is followed by an activation function, which keeps the output as well.
    """
    kept: dict[str, float] = {}
    for name, (out, of_group, *kernel) in shapes.items():
        if kernel and sees_tokens(name):
            kept[name] = (1 + DEPTHWISE) * out if of_group == 1 else of_group + out * (out > of_group)
    return kept


def in_sequence(layers: Mapping[str, float], tokens: Tokens) -> int:
    """Tokens of the sequence that a block with these layers computes."""
    if any(TEXT_BLOCKS in name for name in layers):
        return tokens.prompt
    if any(mark in name for name in layers for mark in REFERENCE_SIDE):
        return tokens.references
    if any(mark in name for name in layers for mark in IMAGE_SIDE):
        return tokens.image - tokens.references
    if tokens.joined and layers and all(any(mark in name for mark in PROMPT_SIDE) for name in layers):
        return max(_of_prompt(name, tokens) for name in layers)
    return tokens.image + tokens.prompt * tokens.joined


def modulated(name: str, tokens: Tokens) -> int:
    """Tokens that a layer outside of the blocks makes shifts, scales and gates for; 0 for other layers."""
    found = MODULATION.search(name)
    sides = {"image": tokens.image - tokens.references, "image_cond": tokens.references, "txt": tokens.prompt}
    return sides.get(found[1], 0) if found else 0


def _of_prompt(name: str, tokens: Tokens) -> int:
    """States that a layer sees of the prompt."""
    return tokens.prompt * (tokens.stacked if LAYERWISE in name else 1)


def crosses(name: str, tokens: Tokens) -> bool:
    """Whether a layer makes keys or values of the tokens of a prompt that is no part of the sequence."""
    return not tokens.joined and bool(tokens.prompt) and CROSS_SIDE.search(name) is not None


def counts_prompts(names: Iterable[str], spec: FamilySpec) -> bool:
    """Whether the tokens of prompts are so many that they count: in the sequence, padded to the limit, or in blocks of their own.

    ``names``: of the network's layers.
    """
    return spec.prompts.joins_sequence or spec.prompts.pads_to_limit or any(TEXT_BLOCKS in name for name in names)


def passed(layers: Mapping[str, float], tokens: Tokens) -> float:
    """Returns the numbers that go into and out of the layers of one block."""
    if not tokens.joined:
        return sum(
            size * (tokens.prompt if crosses(name, tokens) or TEXT_BLOCKS in name else tokens.image) for name, size in layers.items()
        )
    prompt_side = {name for name in layers if any(mark in name for mark in PROMPT_SIDE)}
    if not prompt_side or not tokens.prompt:
        return sum(layers.values()) * in_sequence(layers, tokens)
    return sum(size * (_of_prompt(name, tokens) if name in prompt_side else tokens.image) for name, size in layers.items())
