"""Names the tensors of a CLIP text encoder in the layout of its original code as transformers does. Standard library only.

The files of CLIP (OpenAI) have the names of transformers already. OpenCLIP has its own, and keeps query, key and value in one matrix.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

Shape = tuple[int, ...]
INNER = "text_model."
PROJECTION = "text_projection"
OUTER: Mapping[str, str] = {
    "token_embedding.weight": "embeddings.token_embedding.weight",
    "positional_embedding": "embeddings.position_embedding.weight",
    "ln_final.weight": "final_layer_norm.weight",
    "ln_final.bias": "final_layer_norm.bias",
}
IN_LAYER: Mapping[str, str] = {
    "attn.out_proj": "self_attn.out_proj",
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
LAYER = re.compile(r"transformer\.resblocks\.(\d+)\.(.+)[._](weight|bias)\Z")
BUFFER = "position_ids"


def transformers_shapes(shapes: Mapping[str, Shape], *, layers: int, has_projection: bool) -> dict[str, Shape]:
    """The shapes of a text encoder's weights by their names in transformers.

    ``shapes`` has no prefixes of a complete checkpoint. ``layers`` is the number of layers in the pipeline's configuration: Stable
    Diffusion 2 reads the last but one, and its configuration ends there. Tensors that transformers does not load are left out.
    """
    named = dict(_named(shapes))
    kept = {name: shape for name, shape in named.items() if not name.endswith(BUFFER) and _layer_of(name) < layers}
    return {name: shape for name, shape in kept.items() if has_projection or not name.startswith(PROJECTION)}


def _named(shapes: Mapping[str, Shape]) -> Iterator[tuple[str, Shape]]:
    for key, shape in shapes.items():
        match = LAYER.match(key)
        if key.startswith((INNER, f"{PROJECTION}.")):
            yield key, shape
        elif key == PROJECTION:
            yield f"{PROJECTION}.weight", shape[::-1]  # the original multiplies from the other side
        elif key in OUTER:
            yield INNER + OUTER[key], shape
        elif match is not None:
            layer = f"{INNER}encoder.layers.{match[1]}"
            if match[2] == "attn.in_proj":
                for one in "qkv":
                    yield f"{layer}.self_attn.{one}_proj.{match[3]}", (shape[0] // 3, *shape[1:])
            elif match[2] in IN_LAYER:
                yield f"{layer}.{IN_LAYER[match[2]]}.{match[3]}", shape


def _layer_of(name: str) -> int:
    """The number of the layer that a tensor belongs to; 0 outside of the layers."""
    before, _, after = name.partition("encoder.layers.")
    return int(after.partition(".")[0]) if after else 0
