"""Skip-layer guidance of validation images (``validation_guidance_skip_layers``): which blocks the unguided prediction leaves out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from trainer_engine.config.json_fields import read_json
from trainer_engine.contract.errors import Problem

OPTION = "validation_guidance_skip_layers"
START, STOP = f"{OPTION}_start", f"{OPTION}_stop"
SHAPE = "[9], or a list of several blocks"
MOST_LAYERS = 64
LARGEST_LAYER = 1000


@dataclass(frozen=True)
class SkippedLayers:
    """The blocks that are left out, and in which part of the sampler's steps."""

    layers: tuple[int, ...]
    """Numbers of blocks; 0 is the first."""
    start: float
    """Share of the steps after which it begins."""
    stop: float
    """Share of the steps with which it ends."""

    def applies_to(self, step: int, steps: int) -> bool:
        """Whether blocks are left out in a step (from 0), by the rule of diffusers' pipeline of Stable Diffusion 3."""
        return self.start * steps < step < self.stop * steps


def parse_layers(text: str | None) -> tuple[tuple[int, ...], list[Problem]]:
    """Returns the blocks of an option's text, and every problem with it. If there is a problem there are no blocks."""
    if not text:
        return (), []
    document, problems = read_json(text, OPTION)
    if problems or not document:
        return (), problems
    entries: list[Any] = document if isinstance(document, list) else [document]
    if len(entries) > MOST_LAYERS:
        message = f"{len(entries)} blocks are too many."
        return (), [Problem.error(OPTION, "too_many", message, got=len(entries), expected=f"at most {MOST_LAYERS}")]
    problems = [_not_a_layer(entry) for entry in entries if type(entry) is not int or not 0 <= entry <= LARGEST_LAYER]
    return ((), problems) if problems else (tuple(sorted(set(entries))), [])


def _not_a_layer(entry: object) -> Problem:
    message = "The number of a block is a whole number; 0 is the first block."
    return Problem.error(OPTION, "not_a_whole_number", message, got=entry, expected=f"a number from 0 to {LARGEST_LAYER}")


def outside_problems(layers: Iterable[int], count: int) -> Iterator[Problem]:
    """Whether a network of so many blocks has these; at most one problem."""
    outside = next((layer for layer in layers if layer >= count), None)
    if outside is not None:
        message = f"The network has {count} blocks, 0 to {count - 1}." if count else "The network has no blocks that could be left out."
        expected = f"numbers from 0 to {count - 1}" if count else "nothing"
        yield Problem.error(OPTION, "no_such_layer", message, got=outside, expected=expected)
