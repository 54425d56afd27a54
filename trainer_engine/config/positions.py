"""The square of positions that a network has: the longest edge of an image that it has positions for. Standard library only.

A network takes the positions of an image out of the middle of the square. Beyond its edge diffusers reads those of other rows, without an
error on a CPU, or fails at the first step.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from trainer_engine.config.token_splitting import SizeInUse
from trainer_engine.contract.errors import Problem

MOST_NAMED = 3


@dataclass(frozen=True, kw_only=True)
class PositionSpec:
    """The positions that the networks of a family hold, one for each token of a square."""

    published: int
    """How many the published networks have, counted as ``key`` does."""
    key: str = ""
    """Key of the network's configuration: how many there are; empty if all networks of its class have as many."""
    flavours: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    """Flavour -> how many its network has, if they are not as many."""
    counts_an_edge: bool = False
    """Whether these are the tokens along an edge of the square, and not all of them."""

    def along_an_edge(self, flavour: str, config: Mapping[str, Any]) -> int:
        """Tokens along the edge of the square. ``config``: the network's; empty if it is not known yet."""
        stated = config.get(self.key) if self.key else None
        usual = self.flavours.get(flavour, self.published)
        count = stated if isinstance(stated, int) and not isinstance(stated, bool) and stated > 0 else usual
        return count if self.counts_an_edge else math.isqrt(count)


def long_edges(title: str, edge_px: int, sizes: Iterable[SizeInUse]) -> Iterator[Problem]:
    """Yields an error for each option with sizes that have an edge of more than ``edge_px`` pixels. ``title``: that of the model."""
    found: dict[str, list[SizeInUse]] = {}
    for one in sizes:
        if max(one.size) > edge_px:
            found.setdefault(one.option, []).append(one)
    for option, long in found.items():
        names = list(dict.fromkeys("x".join(map(str, one.size)) for one in long))
        more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
        named = ", ".join(names[:MOST_NAMED]) + more
        message = f"{title} has positions for edges of {edge_px} pixels at most, and these are longer: {named}."
        hint = "take a lower resolution; in a dataset crop_aspect=square, or limits of the aspect, which leave images out, help as well"
        yield Problem.error(option, "beyond_positions", message, got=names[0], expected=f"edges of at most {edge_px} pixels", hint=hint)
