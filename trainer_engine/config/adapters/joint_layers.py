"""Takes the joint layers of published code apart: the low-rank matrices of a layer for queries, keys and values become those of three.

No torch: the rows of a matrix lie one after the other in a file, so that those of a part are a smaller tensor in the same place.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from trainer_engine.config.adapters.file_header import AdapterHeader, StoredTensor
from trainer_engine.config.adapters.keys import keys_by_module
from trainer_engine.config.adapters.other_names import JointLayer
from trainer_engine.config.families import known_key_prefixes, known_original_names

UP, DOWN, CHANGE = ("lora_up.weight", "lora_B.weight"), ("lora_down.weight", "lora_A.weight"), "diff"
"""Matrices of a LoRA, of which the first has the rows of a layer, and the change itself, which has them, too."""
JOINT_RANKS = "joint_ranks"
"""Entry of a file's header: JSON of {joint layer: rank of each part}, 0 for parts without an adapter.

Such a layer holds the LoRAs of its parts side by side, each in rows of the down matrix and in columns of the up matrix of its own.
"""
Parts = list[tuple[str, int]]
"""(module, its share of the rows) of a joint layer, in the order of the rows."""


def taken_apart(header: AdapterHeader, modules: Iterable[str], prefixes: Mapping[str, str] | None = None) -> AdapterHeader:
    """The header of a file in which what lies on a joint layer lies on each of the modules that the layer is here.

    ``modules`` are the names of the network's, ``prefixes`` the ``key_prefixes`` of the family. Joint layers with other tensors than those
    of a LoRA or of a whole change stay as they are. The parts of a LoRA have its down matrix in common, unless the file states their ranks.
    """
    prefixes = known_key_prefixes() if prefixes is None else prefixes
    joint = joint_layers(set(modules), sorted({"", *prefixes.values()}))
    found = keys_by_module(sorted(header.tensors), joint, prefixes)[0] if joint else {}
    tensors, ranks = dict(header.tensors), header.document(JOINT_RANKS)
    for layer, keys in found.items():
        pieces = dict(_pieces(joint[layer], {part: header.tensors[key] for part, key in keys.items()}, ranks.get(layer)))
        if pieces and not pieces.keys() & tensors.keys():
            tensors = {key: tensor for key, tensor in tensors.items() if key not in keys.values()} | pieces
    return replace(header, tensors=tensors) if found else header


def joint_layers(modules: set[str], components: Iterable[str]) -> dict[str, Parts]:
    """Name of a joint layer in the published code -> what it is in a network with these modules."""
    found: dict[str, Parts] = {}
    for component in components:
        own = {module.removeprefix(component) for module in modules if module.startswith(component)}
        for names in (one for one in known_original_names() if one.joint and one.mark in own):
            for layer in names.joint:
                found |= {component + name: [(component + part, rows) for part, rows in parts] for name, parts in _named(layer, own)}
    return found


def _named(layer: JointLayer, modules: set[str]) -> Iterator[tuple[str, Parts]]:
    for name, parts in sorted({found for module in modules if (found := layer.holding(module))}):
        if modules.issuperset(parts):
            yield name, list(zip(parts, layer.shares, strict=True))


def _pieces(parts: Parts, tensors: Mapping[str, StoredTensor], stated: object) -> Iterator[tuple[str, StoredTensor]]:
    """The tensors of each part by their keys; none if they are neither those of a LoRA nor a change. ``stated``: the ranks of the parts."""
    total, split = sum(rows for _, rows in parts), next((name for name in (*UP, CHANGE) if name in tensors), "")
    others = tensors.keys() - {split}
    if not split or others - {*DOWN, "alpha"} or (others and split == CHANGE):
        return
    whole = tensors[split]
    if len(whole.shape) != 2 or whole.shape[0] % total:
        return
    ranks, unit, row, column = _ranks(stated, len(parts), others, tensors, whole), whole.shape[0] // total, 0, 0
    for (module, share), rank in zip(parts, ranks or [0] * len(parts), strict=True):
        rows = _rows(whole, row, share * unit)
        row += share * unit
        if not ranks:
            yield f"{module}.{split}", rows
            yield from ((f"{module}.{name}", tensors[name]) for name in others)
        elif rank:
            yield f"{module}.{split}", replace(rows, shape=(rows.shape[0], rank), first_column=column)
            for name in others:
                shared = tensors[name]
                own = _rows(shared, column, rank) if name in DOWN else replace(shared, factor=rank / whole.shape[1])
                yield f"{module}.{name}", own
        column += rank


def _ranks(
    stated: object, parts: int, others: Iterable[str], tensors: Mapping[str, StoredTensor], whole: StoredTensor
) -> Sequence[int] | None:
    """The ranks of the parts that a file states, or None if it states none that are possible."""
    if not isinstance(stated, list) or len(stated) != parts or any(type(rank) is not int or rank < 0 for rank in stated):
        return None
    downs = [tensors[name].shape for name in others if name in DOWN]
    return stated if sum(stated) == whole.shape[1] and all(shape and shape[0] == sum(stated) for shape in downs) else None


def _rows(tensor: StoredTensor, first: int, count: int) -> StoredTensor:
    size = (tensor.end - tensor.begin) // max(1, tensor.shape[0])
    return replace(tensor, shape=(count, *tensor.shape[1:]), begin=tensor.begin + first * size, end=tensor.begin + (first + count) * size)
