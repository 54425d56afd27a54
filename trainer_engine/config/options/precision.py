"""Options of number types: of the arithmetic, the base weights, the text encoders and the autoencoder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from trainer_engine.config.option import OptionGroup, option
from trainer_engine.config.precisions import LOADED, QUANTISED

REFUSED = {
    "fp8-transformerengine": "Transformer Engine has layers that it trains itself and no quantiser for frozen weights; use fp8-torchao, "
    "which multiplies 8-bit floating-point numbers as well"
}


if TYPE_CHECKING:
    BasePrecision = str
    EncoderPrecision = str
else:
    BasePrecision = Literal[("no_change", *LOADED, *QUANTISED)]
    EncoderPrecision = Literal[("no_change", *QUANTISED)]
EMPTY = {"": "no_change", "none": "no_change", "null": "no_change", "false": "no_change"}


class PrecisionOptions(OptionGroup):
    """Which number types weights are stored in and computed with."""

    mixed_precision: Literal["bf16", "fp16", "no"] = option(
        "bf16",
        "Number type of the computation. bf16 or fp16: compute in that type and store trained weights in float32; bf16 with "
        "optimizer=adamw_bf16 stores them in bfloat16. no: compute and store in float32.",
        synonyms={"fp32": "no", "float32": "no", "none": "no", "bfloat16": "bf16", "float16": "fp16"},
        later=("fp8",),
    )
    base_model_precision: BasePrecision = option(
        "no_change",
        "Number type of the frozen base weights under an adapter. no_change: not quantised. bf16, fp16, fp32: the type to load them in. "
        "The others quantise them to save memory. Trained weights follow mixed_precision and optimizer. A layer that a quantised kernel "
        "computes wrongly keeps its weights, and the run reports it.",
        synonyms=EMPTY,
        refused=REFUSED,
    )
    quantize_via: Literal["accelerator", "cpu", "pipeline"] = option(
        "accelerator",
        "Where weights are quantised. accelerator: layer by layer on the device, which never holds the whole network unquantised. cpu: on "
        "the CPU, before they move to the device. pipeline: as accelerator, for types that the pipelines of diffusers can quantise to.",
    )
    quantize_activations: bool = option(
        False,
        "Round the inputs of layers, too, where the library multiplies rounded numbers: int8-torchao becomes int8dq-torchao, fp8wo-torchao "
        "becomes fp8-torchao. Other types refuse it; those of SDNQ have sdnq_use_quantized_matmul.",
    )
    text_encoder_1_precision: EncoderPrecision = option(
        "no_change", "Number type of the first text encoder's weights. no_change: not quantised.", synonyms=EMPTY, refused=REFUSED
    )
    text_encoder_2_precision: EncoderPrecision = option(
        "no_change", "Number type of the second text encoder's weights. no_change: not quantised.", synonyms=EMPTY, refused=REFUSED
    )
    text_encoder_3_precision: EncoderPrecision = option(
        "no_change", "Number type of the third text encoder's weights. no_change: not quantised.", synonyms=EMPTY, refused=REFUSED
    )
    text_encoder_4_precision: EncoderPrecision = option(
        "no_change", "Number type of the fourth text encoder's weights. no_change: not quantised.", synonyms=EMPTY, refused=REFUSED
    )
    quantization_config: str | None = option(
        None,
        "Another way to write base_model_precision and text_encoder_1_precision, text_encoder_2_precision: a JSON object of component -> "
        "settings of diffusers' quantizers, which must name one of their types, or a file that holds one: "
        '{"transformer": {"load_in_4bit": true, "bnb_4bit_quant_type": "nf4"}}.',
        json=True,
    )
    base_model_default_dtype: Literal["bf16", "fp32"] = option(
        "bf16",
        "Number type of frozen weights that are not quantised. bf16: as mixed_precision says. fp32: float32.",
    )
    disable_tf32: bool = option(
        False, "Multiply float32 matrices exactly on a GPU. Without it GPUs that can round their factors to TF32, which is faster."
    )
    vae_dtype: Literal["bf16", "fp32", "fp16", "default"] = option(
        "bf16",
        "Number type in which the autoencoder computes on a GPU. default: the type of its weights. On a CPU it always computes in float32.",
    )
