"""The inputs that a standard adapter keeps for the backward pass beside those of the layers that it is on."""

from __future__ import annotations

from collections.abc import Mapping

from trainer_engine.config.family_spec import FamilySpec
from trainer_engine.config.options import TrainingOptions
from trainer_engine.config.precisions import compute_precision
from training.preflight.adapter import adapted_layers
from training.preflight.weights import weight_bytes

MASK_BYTES = 1
"""Bytes of the mask of dropout, for each number of an input."""
QUERIES = (".to_q", ".to_query", ".add_q_proj", ".to_qkv_mlp_proj")
"""Layers that make queries. Those of keys and values have the same input."""


def own_inputs(shapes: Mapping[str, tuple[int, ...]], options: TrainingOptions, spec: FamilySpec) -> dict[str, float]:
    """Layer -> numbers for each token that a standard adapter keeps of its own, because its input is not that of the layer.

    Dropout leaves an input of its own, with a mask of one byte a number; an adapter in a longer type than the arithmetic takes a copy in
    its type. Layers that share an input then share nothing: of each group, the one of the queries gives back what all had.
    """
    each = float(compute_precision(options.precision.mixed_precision).weight_bytes)
    drops, is_cast = options.adapter.lora_dropout > 0, weight_bytes(options) != each
    if options.model.model_type == "full" or options.adapter.lora_type != "standard" or not (drops or is_cast):
        return {}
    numbers = (weight_bytes(options) + MASK_BYTES * drops) / each
    adapted = adapted_layers(options, spec, shapes)
    return {name: shape[1] * (numbers - name.endswith(QUERIES)) for name, shape in adapted.items()}
