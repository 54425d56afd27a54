"""Computes the tensors of a LyCORIS adapter from its file and the shapes of the layers. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from trainer_engine.config.adapters.fit import Shape, WantedAdapter, WantedModule
from trainer_engine.config.lycoris.config_file import LycorisConfig

KINDS = {"lora": "LoRA", "locon": "LoRA", "dylora": "LoRA", "loha": "LoHa", "lokr": "LoKr", "glora": "GLoRA", "full": "full"}
"""Algorithm in the file -> kind of its tensors. Only the library knows the tensors of the other algorithms."""
CHANGE_TENSORS = ("use_tucker", "use_scalar", "weight_decompose", "dora_wd", "train_norm", "unbalanced_factorization")
"""Arguments that change the tensors. With them only the engine can compare tensors."""


def wanted_lycoris(modules: Mapping[str, WantedModule], config: LycorisConfig, *, is_complete: bool = True) -> WantedAdapter:
    return WantedAdapter(
        modules=modules,
        rank_option="linear_dim",
        alpha_option="linear_alpha",
        dora_option="weight_decompose",
        is_complete=is_complete,
        multiplier=config.multiplier,
    )


def wanted_module(layer: Shape, config: LycorisConfig, changes: Mapping[str, Any]) -> WantedModule | None:
    """Returns the tensors trained on a linear layer of shape (out, in), or None if only the library knows them.

    ``changes`` are the overrides of the layer's class.
    """
    settings = {**config.arguments, "algo": config.algo, "dim": config.linear_dim, "alpha": config.linear_alpha, **changes}
    algo, rank = str(settings["algo"]), int(settings["dim"])
    if algo not in KINDS:
        return None
    if any(settings.get(name) for name in CHANGE_TENSORS):
        return WantedModule({}, kind=KINDS[algo])
    out_features, in_features = layer
    if KINDS[algo] == "LoRA":
        return WantedModule({"lora_A.weight": (rank, in_features), "lora_B.weight": (out_features, rank)}, float(settings["alpha"]))
    if algo == "loha":
        shapes: dict[str, Shape | None] = {}
        for factor in ("hada_w1", "hada_w2"):
            shapes |= {f"{factor}_a": (out_features, rank), f"{factor}_b": (rank, in_features)}
        return WantedModule(shapes, float(settings["alpha"]))
    if algo == "lokr":
        return _lokr(layer, rank, settings)
    return WantedModule({}, kind=KINDS[algo])


def _lokr(layer: Shape, rank: int, settings: Mapping[str, Any]) -> WantedModule:
    """Returns two Kronecker factors. Each is a full matrix, or a product of two if the rank is below half of its longer edge."""
    factor, is_full = int(settings.get("factor", -1)), bool(settings.get("full_matrix"))
    (out_1, out_2), (in_1, in_2) = (kronecker_split(size, factor) for size in layer)
    parts: dict[str, Shape | None] = {}
    for name, rows, columns, may_split in (("lokr_w1", out_1, in_1, bool(settings.get("decompose_both"))), ("lokr_w2", out_2, in_2, True)):
        if may_split and not is_full and rank < max(rows, columns) / 2:
            parts |= {f"{name}_a": (rows, rank), f"{name}_b": (rank, columns)}
        else:
            parts[name] = (rows, columns)
    is_scaled = any(name.endswith("_a") for name in parts)
    return WantedModule(parts, float(settings["alpha"]) if is_scaled else None)


def kronecker_split(size: int, factor: int) -> tuple[int, int]:
    """Returns the two factors of a layer's edge, the smaller one first.

    One of them is ``factor`` if it divides the edge, else the largest divisor up to it, or up to the square root if it is negative.
    """
    if factor > 0 and size % factor == 0:
        return min(factor, size // factor), max(factor, size // factor)
    most = min(math.isqrt(size), factor if factor > 0 else size)
    smaller = next(one for one in range(max(1, most), 0, -1) if size % one == 0)
    return smaller, size // smaller
