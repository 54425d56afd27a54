"""The network of every family, and the architecture of every flavour, as the configurations of the published repositories state it.

``python -m tests.bench.published`` writes the shapes of their tensors into ``shapes.json`` of each family, which estimates are made from.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from functools import cache
from types import MappingProxyType
from typing import Any

import torch

from tests.bench.networks import Architecture, Network, make_network
from tests.helpers.family_folders import stated
from trainer_engine.config.families import family_folder, specs
from training.preflight.published_shapes import FILE

NETWORKS: Mapping[str, Network] = MappingProxyType(stated("network", "NETWORK"))
"""Family -> the network that the module ``network`` of its folder of tests states."""


def architecture_of(family: str, flavour: str) -> Architecture:
    """The arguments of the network's class."""
    network = NETWORKS[family]
    return {**network.architecture, **network.others.get(flavour, {})}


def published() -> Iterator[tuple[str, str]]:
    """(Family, flavour) of each different architecture, the family's default first."""
    for family, network in NETWORKS.items():
        spec = specs()[family]
        others = [flavour for flavour in spec.flavours if flavour in network.others]
        first = {repr(sorted(architecture_of(family, flavour).items())): flavour for flavour in reversed(others)}
        yield family, spec.default_flavour
        yield from ((family, flavour) for flavour in others if flavour in first.values())


def published_network(family: str, flavour: str) -> torch.nn.Module:
    """The network at its real size, on the meta device; one for all flavours that have the same."""
    others = NETWORKS[family].others
    same = next((one for one in others if architecture_of(family, one) == architecture_of(family, flavour)), "")
    return _made(family, same if flavour in others else specs()[family].default_flavour)


@cache
def _made(family: str, flavour: str) -> torch.nn.Module:
    return make_network(NETWORKS[family], architecture_of(family, flavour), torch.device("meta"), torch.bfloat16)


def shapes_of(family: str, flavour: str) -> dict[str, tuple[int, ...]]:
    """Tensor -> shape of a published network."""
    return {name: tuple(tensor.shape) for name, tensor in published_network(family, flavour).state_dict().items()}


def document(family: str) -> list[dict[str, Any]]:
    """What ``shapes.json`` of a family holds: the flavours that have the same shapes, and these."""
    groups: dict[str, list[str]] = defaultdict(list)
    for flavour in specs()[family].flavours:
        names: dict[str, list[str]] = defaultdict(list)
        for name, shape in shapes_of(family, flavour).items():
            names["x".join(map(str, shape))].append(name)
        tensors = {shape: starred(found) for shape, found in sorted(names.items())}
        groups[json.dumps(tensors)].append(flavour)
    return [{"flavours": flavours, "tensors": json.loads(tensors)} for tensors, flavours in groups.items()]


def written(family: str) -> list[dict[str, Any]]:
    """``document`` as it lies in the family's folder, without making a network."""
    found: list[dict[str, Any]] = json.loads((family_folder(family) / FILE).read_text())
    return found


def starred(names: Collection[str]) -> list[str]:
    """The names, with ``*19`` for the numbers 0 to 18 where all of them are there."""
    found = set(names)
    for place in reversed(range(max(name.count(".") for name in names) + 1)):
        numbers: dict[tuple[str, str], list[int]] = defaultdict(list)
        for parts in (name.split(".") for name in found):
            if place < len(parts) and parts[place].isdigit():
                numbers[".".join(parts[:place]), ".".join(parts[place + 1 :])].append(int(parts[place]))
        for (before, after), counted in numbers.items():
            if len(counted) > 1 and sorted(counted) == list(range(len(counted))):
                found -= {f"{before}.{number}.{after}" for number in counted}
                found.add(f"{before}.*{len(counted)}.{after}")
    return sorted(found)


if __name__ == "__main__":
    for name in NETWORKS:
        (family_folder(name) / FILE).write_text(json.dumps(document(name), indent=1) + "\n")
