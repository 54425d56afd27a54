"""The tokens of a step, and those that each block of a transformer computes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from trainer_engine.config.family_spec import FamilySpec
from trainer_engine.config.options import TrainingOptions
from trainer_engine.config.routing import parse_routes


@dataclass(frozen=True)
class Tokens:
    """Sizes of one micro-batch, over all samples."""

    image: int
    """Tokens of the image and of its reference images."""
    prompt: int
    """Tokens of the prompts; 0 if they are few, and only cross-attention sees them."""
    joined: bool = True
    """Whether prompts are part of the sequence of the image."""


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
