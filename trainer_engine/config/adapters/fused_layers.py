"""Takes the joint layers of published code apart: the low-rank matrices of a layer for queries, keys and values become those of three.

No torch: the rows of a matrix lie one after the other in a file, so that those of a part are a smaller tensor in the same place.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from trainer_engine.config.adapters.file_header import AdapterHeader, StoredTensor
from trainer_engine.config.adapters.keys import keys_by_module
from trainer_engine.config.adapters.other_names import FusedLayer
from trainer_engine.config.families import known_key_prefixes, known_original_names

UP, SHARED = ("lora_up.weight", "lora_B.weight"), ("lora_down.weight", "lora_A.weight", "alpha")
"""Tensors of a LoRA that are taken apart, and those that every part has."""
Parts = list[tuple[str, int]]
"""(module, its share of the rows) of a joint layer, in the order of the rows."""


def taken_apart(header: AdapterHeader, modules: Iterable[str], prefixes: Mapping[str, str] | None = None) -> AdapterHeader:
    """The header of a file in which every LoRA on a joint layer is one on each of the modules that the layer is here.

    ``modules`` are the names of the network's, ``prefixes`` the ``key_prefixes`` of the family. Joint layers with other tensors than those
    of a LoRA stay as they are.
    """
    prefixes = known_key_prefixes() if prefixes is None else prefixes
    joint = joint_layers(set(modules), sorted({"", *prefixes.values()}))
    found = keys_by_module(sorted(header.tensors), joint, prefixes)[0] if joint else {}
    tensors = dict(header.tensors)
    for layer, keys in found.items():
        pieces = dict(_pieces(joint[layer], {part: header.tensors[key] for part, key in keys.items()}))
        if pieces and not pieces.keys() & tensors.keys():
            tensors = {key: tensor for key, tensor in tensors.items() if key not in keys.values()} | pieces
    return replace(header, tensors=tensors) if found else header


def joint_layers(modules: set[str], components: Iterable[str]) -> dict[str, Parts]:
    """Name of a joint layer in the published code -> what it is in a network with these modules."""
    found: dict[str, Parts] = {}
    for component in components:
        own = {module.removeprefix(component) for module in modules if module.startswith(component)}
        for names in (one for one in known_original_names() if one.fused and one.mark in own):
            for layer in names.fused:
                found |= {component + name: [(component + part, rows) for part, rows in parts] for name, parts in _named(layer, own)}
    return found


def _named(layer: FusedLayer, modules: set[str]) -> Iterator[tuple[str, Parts]]:
    for module in sorted(modules):
        match = re.fullmatch(layer.first, module)
        if match is not None:
            parts = [module, *(match.expand(other) for other in layer.others)]
            if modules.issuperset(parts):
                yield match.expand(layer.name), list(zip(parts, layer.shares, strict=True))


def _pieces(parts: Parts, tensors: Mapping[str, StoredTensor]) -> Iterator[tuple[str, StoredTensor]]:
    """The tensors of each part by their keys; none if they are not those of a LoRA."""
    total, up = sum(rows for _, rows in parts), next((name for name in UP if name in tensors), "")
    if not up or not tensors.keys() <= {up, *SHARED} or len(tensors[up].shape) != 2 or tensors[up].shape[0] % total:
        return
    whole = tensors[up]
    unit, first = whole.shape[0] // total, 0
    row_bytes = (whole.end - whole.begin) // max(1, whole.shape[0])
    for module, rows in parts:
        begin, count = whole.begin + first * unit * row_bytes, rows * unit
        yield f"{module}.{up}", StoredTensor(whole.dtype, (count, whole.shape[1]), begin, begin + count * row_bytes)
        yield from ((f"{module}.{name}", tensor) for name, tensor in tensors.items() if name != up)
        first += rows
