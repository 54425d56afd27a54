"""Weights that their publisher has quantised: how their files are recognised, and the type that a run keeps them in. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from trainer_engine.config.families import find_spec

SCALE = ".weight_scale"
"""End of the names of the scales of 8-bit weights."""
QUANT_STATE = ".quant_state."
"""Part of the names of the sizes of 4-bit weights of bitsandbytes."""
BASE = "base_model_precision"
NOT_QUANTISED = f"{BASE}=no_change"


def is_published_quantised(names: Iterable[str]) -> bool:
    """Whether the names of the tensors in a file are those of quantised weights."""
    return any(name.endswith(SCALE) or QUANT_STATE in name for name in names)


def kept_as_published(values: Mapping[str, Any]) -> dict[str, Any]:
    """The type in which a run keeps frozen base weights that its options leave as they are published.

    ``values``: the given options. Empty unless the base model is the repository of a flavour with quantised weights, an adapter is
    trained, and no option asks for another type.
    """
    spec = find_spec(str(values.get("model_family", "")))
    if spec is None or values.get("model_type") != "lora" or values.get(BASE, "no_change") != "no_change":
        return {}
    flavour = str(values.get("model_flavour") or spec.default_flavour)
    is_published = values.get("pretrained_model_name_or_path") in (None, "", spec.flavours.get(flavour))
    is_replaced = bool(values.get("pretrained_transformer_model_name_or_path"))
    if flavour not in spec.published_precisions or not is_published or is_replaced or values.get(spec.widening_option):
        return {}
    return {BASE: spec.published_precisions[flavour]}


def exact_base(values: Mapping[str, Any]) -> str:
    """The setting with which the frozen base weights are not quantised, for hints. ``values``: those of all options."""
    spec = find_spec(str(values.get("model_family", "")))
    is_kept = bool(kept_as_published({**values, BASE: "no_change"}))
    return f"{spec.widening_option}=true with {NOT_QUANTISED}" if spec is not None and is_kept and spec.widening_option else NOT_QUANTISED
