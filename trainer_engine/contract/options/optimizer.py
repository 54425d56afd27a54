from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from trainer_engine.contract.option import OptionGroup, option

LATER = (
    "torch-adam",
    "torch-sgd",
    "torch-radam",
    "torch-nadam",
    "torch-rmsprop",
    "torch-adagrad",
    "torch-adadelta",
    "torch-adafactor",
    "torch-adamax",
    "torch-asgd",
    "torch-sparseadam",
    "ao-adamw8bit",
    "ao-adamw4bit",
    "ao-adamfp8",
    "ao-adamwfp8",
    "adamw_schedulefree",
    "adamw_schedulefree+aggressive",
    "adamw_schedulefree+no_kahan",
    "optimi-stableadamw",
    "optimi-lion",
    "optimi-radam",
    "optimi-ranger",
    "optimi-adan",
    "optimi-adam",
    "optimi-sgd",
    "soap",
    "muon",
    "bnb-adagrad",
    "bnb-adagrad8bit",
    "bnb-adam",
    "bnb-adam8bit",
    "bnb-adamw",
    "bnb-adamw8bit",
    "bnb-adamw-paged",
    "bnb-adamw8bit-paged",
    "bnb-lion",
    "bnb-lion8bit",
    "bnb-lion-paged",
    "bnb-lion8bit-paged",
    "bnb-ademamix",
    "bnb-ademamix8bit",
    "bnb-ademamix-paged",
    "bnb-ademamix8bit-paged",
    "prodigy",
    "sdnq-adamw",
    "sdnq-adamw+no_quant",
    "sdnq-adafactor",
    "sdnq-came",
    "sdnq-lion",
    "sdnq-muon",
    "sdnq-muon+quantized_matmul",
)


_OF_OPTIMI: Mapping[str, type] = {
    "weight_decay": float,
    "eps": float,
    "max_lr": float,
    "decouple_lr": bool,
    "kahan_sum": bool,
    "foreach": bool,
    "triton": bool,
}
_OF_TORCH: Mapping[str, type] = {"weight_decay": float, "eps": float, "amsgrad": bool, "maximize": bool, "foreach": bool, "fused": bool}
ARGUMENTS: Mapping[str, Mapping[str, type]] = {"adamw_bf16": _OF_OPTIMI, "optimi-adamw": _OF_OPTIMI, "torch-adamw": _OF_TORCH}
"""Optimizer -> the arguments that ``optimizer_config`` may give it; None leaves one to the optimizer."""


class OptimizerOptions(OptionGroup):
    """How the weights move."""

    optimizer: Literal["adamw_bf16", "torch-adamw", "optimi-adamw"] = option(
        "adamw_bf16",
        "Update rule. adamw_bf16 keeps bfloat16 weights with Kahan summation, so that small steps count; on float32 weights it is AdamW.",
        later=LATER,
    )
    learning_rate: float = option(4e-7, "Peak learning rate.", gt=0, le=1)
    max_grad_norm: float = option(2.0, "Limit of grad_clip_method; 0 leaves gradients alone. PixArt Sigma's own default is 0.01.", ge=0)
    grad_clip_method: Literal["value", "norm"] = option("value", "Clip each element of the gradients, or the norm of all together.")
    optimizer_beta1: float | None = option(None, "First beta; goes together with optimizer_beta2.", ge=0, lt=1)
    optimizer_beta2: float | None = option(None, "Second beta; goes together with optimizer_beta1.", ge=0, lt=1)
    optimizer_config: dict[str, float | bool | str | None] = option(
        {}, "Arguments of the optimizer as key=value,key=value: weight_decay=0.01,eps=1e-8."
    )
