"""Options of the number types of SDNQ, which quantises to almost any number of bits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from trainer_engine.config.option import OptionGroup, option
from trainer_engine.config.precisions import SDNQ_BYTES

if TYPE_CHECKING:
    SdnqType = str
else:
    SdnqType = Literal[tuple(SDNQ_BYTES)]
NO_TYPE = {"": None, "none": None, "null": None}


class SdnqOptions(OptionGroup):
    """How the number types that end in `-sdnq` quantise. They have an effect only with such a type.

    Names of modules are full names in the network, parts of such names between dots, or patterns with `*`.
    """

    sdnq_weights_dtype: SdnqType | None = option(
        None, "Quantise weights to this type instead of the one that base_model_precision or a text encoder's precision names."
    )
    sdnq_group_size: int | None = option(
        None,
        "Weights of a row that share a scale. Empty or 0: the library chooses by the type. -1: one scale a row. -2: one scale a layer.",
        ge=-2,
        le=65536,
    )
    sdnq_use_hadamard: bool | None = option(
        None, "Rotate weights by a Hadamard matrix before they are rounded, which spreads outliers over a group."
    )
    sdnq_hadamard_group_size: int | None = option(None, "Weights that one rotation mixes. Empty: 256.", ge=2, le=65536)
    sdnq_use_svd: bool | None = option(
        None, "Keep the largest singular vectors of each layer exactly, and quantise the rest (SVDQuant; Li et al., 2024)."
    )
    sdnq_svd_rank: int | None = option(None, "Singular vectors that sdnq_use_svd keeps. Empty: 32.", ge=1, le=4096)
    sdnq_svd_steps: int | None = option(None, "Iterations that estimate the singular vectors. Empty: 8.", ge=1, le=1000)
    sdnq_use_stochastic_rounding: bool | None = option(
        None, "Round weights up or down by chance. The chance follows from the seed and the layer, so a resumed run has the same weights."
    )
    sdnq_dequantize_fp32: bool | None = option(
        None, "Keep scales in float32 and dequantise in it. Empty: true. false keeps them in the type of the weights, which saves little."
    )
    sdnq_use_quantized_matmul: bool | None = option(
        None, "Round the inputs of layers, too, and multiply 8-bit numbers. Layers of unusual shapes multiply as usual."
    )
    sdnq_quantized_matmul_dtype: Literal["auto", "int8", "uint8", "fp8", "fp16"] = option(
        "auto",
        "Type of the numbers that sdnq_use_quantized_matmul multiplies. auto: int8 for whole numbers, fp8 or fp16 for the others.",
        synonyms={"": "auto", "none": "auto", "float8_e4m3fn": "fp8", "float16": "fp16"},
    )
    sdnq_use_static_quantization: bool | None = option(
        None,
        "Keep the weights quantised. false keeps them exact and quantises them for each product: it saves no memory, and needs "
        "sdnq_use_quantized_matmul. Empty: true.",
    )
    sdnq_modules_to_not_convert: str = option("", "List of modules that stay unquantised.", json=True)
    sdnq_modules_to_not_use_matmul: str = option("", "List of modules that sdnq_use_quantized_matmul leaves alone.", json=True)
    sdnq_modules_dtype_dict: str = option("", 'Type of SDNQ -> list of modules that get it: {"uint4": ["ff"]}.', json=True)
    sdnq_modules_quant_config: str = option(
        "", 'Module -> settings of its own: {"proj_out": {"group_size": -1}}. Settings are the options above without sdnq_.', json=True
    )
    sdnq_compile_mode: Literal["auto", "disabled"] = option(
        "auto",
        "Whether the library compiles its kernels. auto: on a GPU where Triton is installed. disabled: never.",
        synonyms={"": "auto", "compile": "auto", **dict.fromkeys(("eager", "none", "off", "never", "false"), "disabled")},
    )
