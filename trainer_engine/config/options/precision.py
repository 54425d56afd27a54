from __future__ import annotations

from typing import Literal

from trainer_engine.config.option import OptionGroup, option

LATER = (
    "int8-torchao",
    "int8dq-torchao",
    "int8dq-int4-torchao",
    "int8-sdnq",
    "uint8-sdnq",
    "int16-sdnq",
    "uint16-sdnq",
    "fp16-sdnq",
    "fp8-sdnq",
    "int6-sdnq",
    "int5-sdnq",
    "uint5-sdnq",
    "uint4-sdnq",
    "uint3-sdnq",
    "uint2-sdnq",
    "nf4-bnb",
    "int4-torchao",
    "fp8uz-quanto",
    "fp8-native",
    "fp8-torchao",
    "fp8wo-torchao",
    "fp8-int4-torchao",
    "fp8-transformerengine",
)


QUANTISED = ("int8-quanto", "int4-quanto", "int2-quanto", "fp8-quanto")
Quantised = Literal["no_change", "int8-quanto", "int4-quanto", "int2-quanto", "fp8-quanto"]
EMPTY = {"": "no_change", "none": "no_change", "null": "no_change", "false": "no_change"}


class PrecisionOptions(OptionGroup):
    """Which number types are stored and computed in."""

    mixed_precision: Literal["bf16", "fp16", "no"] = option(
        "bf16",
        "Type of the arithmetic. no stores and computes in float32. bf16 with adamw_bf16 stores bfloat16 weights; "
        "bf16 or fp16 with another optimizer stores float32 weights and computes in the shorter type.",
        synonyms={"fp32": "no", "float32": "no", "none": "no", "bfloat16": "bf16", "float16": "fp16"},
        later=("fp8",),
    )
    base_model_precision: Literal["no_change", "bf16", "fp16", "fp32", "int8-quanto", "int4-quanto", "int2-quanto", "fp8-quanto"] = option(
        "no_change",
        "Type in which the base weights are kept. The quantised types are for adapters, whose base is frozen. bf16, fp16 and fp32 name the "
        "type of weights that are loaded; what is trained is stored as mixed_precision and optimizer say. Layers that a quantised "
        "kernel does not compute rightly keep their own weights, and the run names them.",
        synonyms=EMPTY,
        later=LATER,
    )
    quantize_via: Literal["accelerator", "cpu"] = option(
        "accelerator", "Where weights are quantised: layer by layer on the device, or on the CPU before they go there.", later=("pipeline",)
    )
    text_encoder_1_precision: Quantised = option("no_change", "Type of the first text encoder's weights.", synonyms=EMPTY, later=LATER)
    text_encoder_2_precision: Quantised = option("no_change", "Type of the second text encoder's weights.", synonyms=EMPTY, later=LATER)
    base_model_default_dtype: Literal["bf16", "fp32"] = option(
        "bf16",
        "Frozen weights below an adapter, and what of them is not quantised: bf16 keeps them as mixed_precision says, fp32 in float32.",
    )
    vae_dtype: Literal["bf16", "fp32", "fp16", "default"] = option(
        "bf16", "Type in which the autoencoder computes on a GPU; default takes the type of its weights. On a CPU it computes in float32."
    )
