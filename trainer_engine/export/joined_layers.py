"""Adapters on layers that ComfyUI has as one: the rows of query, key and value in one matrix, for example."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from trainer_engine.config.adapters.joint_layers import DOWN, JOINT_RANKS
from trainer_engine.config.adapters.other_names import ModuleKeys
from trainer_engine.contract.errors import ModelUnavailable

LORA = frozenset({"lora_A.weight", "lora_B.weight", "alpha"})
Tensors = Mapping[str, Tensor]


def joined_layers(modules: Mapping[str, Tensors], keys: Mapping[str, ModuleKeys], outputs: Mapping[str, int]) -> dict[str, Tensors]:
    """The modules of an adapter for ComfyUI, those of one layer together, under the name of the first of its rows.

    ``outputs``: module -> number of its outputs; needed of layers that the adapter leaves out. Raises ModelUnavailable if it is not
    known, and for a weight-decomposed adapter (DoRA), whose change depends on the weights.
    """
    found: dict[str, Tensors] = {}
    for name, tensors in modules.items():
        rows = _rows_of(name, keys)[1]
        if not rows:
            found[name] = tensors
        elif rows[0] not in found:
            found[rows[0]] = _joined({row: modules.get(row) for row in rows}, outputs)
    return found


def stated_ranks(modules: Mapping[str, Tensors], keys: Mapping[str, ModuleKeys]) -> dict[str, str]:
    """The entry of a file's header with which its joined LoRAs are taken apart again (``JOINT_RANKS``); nothing if there are none."""
    ranks = dict(_ranks(modules, keys))
    return {JOINT_RANKS: json.dumps(ranks, sort_keys=True)} if ranks else {}


def _ranks(modules: Mapping[str, Tensors], keys: Mapping[str, ModuleKeys]) -> Iterator[tuple[str, list[int]]]:
    for name in modules:
        layer, rows = _rows_of(name, keys)
        adapted = [modules.get(row, {}) for row in rows]
        ranks = [next((len(tensors[part]) for part in DOWN if part in tensors), 0) for tensors in adapted]
        if rows and all(bool(rank) == bool(tensors) for rank, tensors in zip(ranks, adapted, strict=True)):
            yield layer, ranks


def _rows_of(name: str, keys: Mapping[str, ModuleKeys]) -> tuple[str, Sequence[str]]:
    """(name of the layer that ComfyUI has in place of a module, the modules with its rows); no modules for a layer of its own."""
    component = max((prefix for prefix in keys if name.startswith(prefix)), key=len)
    local = name.removeprefix(component)
    return component + keys[component].original(local), [component + row for row in keys[component].rows_of(local)]


def _joined(layers: Mapping[str, Tensors | None], outputs: Mapping[str, int]) -> dict[str, Tensor]:
    """The change of one layer, from those of its rows; None leaves rows as they are.

    LoRAs stay one, of the sum of their ranks: with matrices A_i (r_i, in) and B_i (out_i, r_i) it is diag(B_1, B_2, ...) times
    [A_1; A_2; ...]. It has their scale, or none where they have several. Anything else becomes the change itself, as ``diff``.
    """
    adapted = [tensors for tensors in layers.values() if tensors is not None]
    if all(LORA.issuperset(tensors) for tensors in adapted):
        return _joined_loras(layers, outputs)
    changes = {name: _change(tensors) for name, tensors in layers.items() if tensors is not None}
    like = next(iter(changes.values()))
    return {"diff": torch.cat([changes[name] if name in changes else _no_rows(like, name, outputs) for name in layers])}


def _joined_loras(layers: Mapping[str, Tensors | None], outputs: Mapping[str, int]) -> dict[str, Tensor]:
    adapted = [tensors for tensors in layers.values() if tensors is not None]
    down = torch.cat([tensors["lora_A.weight"] for tensors in adapted])
    scales = [_scale(tensors) for tensors in adapted]
    shared = scales[0] if all(math.isclose(scale, scales[0]) for scale in scales) else 1.0
    ups = [
        down.new_zeros(_outputs(name, outputs), 0) if tensors is None else tensors["lora_B.weight"] * (_scale(tensors) / shared)
        for name, tensors in layers.items()
    ]
    found = {"lora_A.weight": down, "lora_B.weight": torch.block_diag(*ups)}
    if any("alpha" in tensors for tensors in adapted):
        found["alpha"] = torch.tensor(shared * len(down))
    return found


def _scale(tensors: Tensors) -> float:
    return float(tensors["alpha"]) / len(tensors["lora_A.weight"]) if "alpha" in tensors else 1.0


def _change(tensors: Tensors) -> Tensor:
    """(out, in): what an adapter adds to the weights of a layer."""
    if "dora_scale" not in tensors:
        if "lora_A.weight" in tensors:
            return tensors["lora_B.weight"] @ tensors["lora_A.weight"] * _scale(tensors)
        if "hada_w1_a" in tensors:
            whole = (tensors["hada_w1_a"] @ tensors["hada_w1_b"]) * (tensors["hada_w2_a"] @ tensors["hada_w2_b"])
            return whole * (float(tensors["alpha"]) / len(tensors["hada_w1_b"]) if "alpha" in tensors else 1)
        if any(part in tensors for part in ("lokr_w1", "lokr_w1_a")):
            decomposed = next((tensors[part] for part in ("lokr_w2_b", "lokr_w1_b") if part in tensors), None)
            scale = float(tensors["alpha"]) / len(decomposed) if decomposed is not None and "alpha" in tensors else 1
            return torch.kron(*(_factor(tensors, part) for part in ("lokr_w1", "lokr_w2"))) * scale
        if "diff" in tensors and "diff_b" not in tensors:
            return tensors["diff"]
    message = f"ComfyUI has a layer as one with others, which cannot hold the tensors {', '.join(sorted(tensors))}."
    raise ModelUnavailable(message, hint="use --to merged, or load the adapter with LyCORIS itself")


def _factor(tensors: Tensors, name: str) -> Tensor:
    return tensors[name] if name in tensors else tensors[f"{name}_a"] @ tensors[f"{name}_b"]


def _no_rows(like: Tensor, name: str, outputs: Mapping[str, int]) -> Tensor:
    return like.new_zeros(_outputs(name, outputs), like.shape[1])


def _outputs(name: str, outputs: Mapping[str, int]) -> int:
    if name not in outputs:
        message = f"The size of {name} is not known, and ComfyUI has it as one layer with others."
        raise ModelUnavailable(message, hint="adapt all of these layers, or use --to merged")
    return outputs[name]
