"""Token routing (``tread_config``): which blocks of a transformer a share of the image's tokens skips while it is trained."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from trainer_engine.config.json_fields import entries_of, read_json
from trainer_engine.contract.errors import Problem

OPTION = "tread_config"
KEYS = ("selection_ratio", "start_layer_idx", "end_layer_idx")
SHAPE = '{"routes": [{"selection_ratio": 0.5, "start_layer_idx": 2, "end_layer_idx": -2}]}'
MOST_ROUTES = 16
LARGEST_INDEX = 1000


@dataclass(frozen=True, kw_only=True)
class RoutingSpec:
    """Where a transformer has its blocks, and where a block has the tokens of the image."""

    blocks: tuple[str, ...] = ("transformer_blocks",)
    """The lists of blocks, in the order in which the network calls them. Layers are counted through all of them."""
    tokens: str = "hidden_states"
    """Name of the block's argument that holds the tokens of the image (B, N, C); references, and the prompt of a network that has it there,
    come after them."""
    axis: int = 1
    """Axis of the tokens in that argument and in what a block returns: 0 where tokens come before samples (N, B, C)."""
    output: int | None = None
    """Position of these tokens in what a block returns; None if it returns nothing else."""
    along: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    """Other arguments with one row a token -> their axis of tokens. They hold tensors, tuples or mappings of tensors, or None. If they are
    longer than the image, the tokens of the prompt come first."""
    joined: frozenset[str] = frozenset()
    """Those of the lists whose blocks get the tokens of the prompt in the same argument, before those of the image."""
    cells: tuple[int, ...] = (2, 2)
    """Latent cells of a token along each axis. Tokens are in the order of the latents' rows."""


@dataclass(frozen=True)
class Route:
    """A run of blocks, and the share of the tokens that skips it."""

    ratio: float
    """In [0, 1)."""
    start: int
    """First block of the route; negative ones count from the end."""
    end: int
    """Last block of the route."""
    place: str

    def within(self, layers: int) -> range:
        """The blocks of the route in a network of so many. Empty if the route ends before it starts; it may be out of the network."""
        start, end = (index + layers if index < 0 else index for index in (self.start, self.end))
        return range(start, end + 1)


def parse_routes(text: str | None) -> tuple[tuple[Route, ...], list[Problem]]:
    """Returns the routes of an option's text, and every problem with it. If there is a problem there are no routes."""
    if not text:
        return (), []
    document, problems = read_json(text, OPTION)
    if problems or not document:
        return (), problems
    if isinstance(document, Mapping) and "routes" in document:
        problems += [_unknown(OPTION, key, ("routes",)) for key in document if key != "routes"]
        document = document["routes"]
    entries, wrong = entries_of(document or [], OPTION, "Routes", MOST_ROUTES)
    problems += wrong
    routes = [_route(entry, f"{OPTION}.routes[{index}]", problems) for index, entry in enumerate(entries)]
    return ((), problems) if problems else (tuple(routes), [])


def _route(entry: Mapping[str, Any], place: str, problems: list[Problem]) -> Route:
    problems += [_unknown(place, key, KEYS) for key in entry if key not in KEYS]
    ratio = entry.get("selection_ratio")
    if isinstance(ratio, bool) or not isinstance(ratio, (int, float)) or not 0 <= ratio < 1:
        message = "selection_ratio is the share of the tokens that skips the blocks."
        problems.append(
            Problem.error(f"{place}.selection_ratio", "out_of_range", message, got=ratio, expected="a number from 0 to below 1")
        )
        ratio = 0
    indices = []
    for key in KEYS[1:]:
        index = entry.get(key)
        if isinstance(index, bool) or not isinstance(index, int) or abs(index) > LARGEST_INDEX:
            message = f"{key} is the number of a block: 0 is the first, -1 the last."
            problems.append(Problem.error(f"{place}.{key}", "not_a_whole_number", message, got=index, expected="a whole number"))
            index = 0
        indices.append(index)
    return Route(float(ratio), indices[0], indices[1], place)


def _unknown(place: str, key: object, known: tuple[str, ...]) -> Problem:
    return Problem.error(f"{place}.{key}", "unknown_key", f"There is no key {key!r} here.", got=key, expected=f"one of {', '.join(known)}")


def count_blocks(names: Iterable[str], spec: RoutingSpec) -> int:
    """Returns how many blocks the network with modules or tensors of these names has, all lists together."""
    lists = "|".join(map(re.escape, spec.blocks))
    found = (re.match(rf"({lists})\.\d+(?=\.|\Z)", name) for name in names)
    return len({match[0] for match in found if match})


def layer_problems(routes: Iterable[Route], layers: int) -> Iterator[Problem]:
    """Whether the routes fit a network of so many blocks: they are in it, and no block is in two of them."""
    taken: dict[int, str] = {}
    for route in routes:
        blocks = route.within(layers)
        outside = [index for index in (route.start, route.end) if not -layers <= index < layers]
        if outside:
            message = f"The network has {layers} blocks, 0 to {layers - 1}."
            yield Problem.error(route.place, "no_such_layer", message, got=outside[0], expected=f"a number from {-layers} to {layers - 1}")
        elif not blocks:
            message = f"The route ends with block {blocks.stop - 1}, before it starts with {blocks.start}."
            yield Problem.error(route.place, "ends_too_early", message, got=route.end, expected="a block after the first")
        else:
            other = next((taken[index] for index in blocks if index in taken), None)
            if other is not None:
                message = f"It has blocks that {other} has as well."
                yield Problem.error(route.place, "overlapping_routes", message, expected="routes of different blocks")
            taken |= dict.fromkeys(blocks, route.place)
