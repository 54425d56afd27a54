from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from trainer_engine.config.option import OptionGroup, option

LATER = (
    "torch-sparseadam",
    "ao-adamw8bit",
    "ao-adamw4bit",
    "ao-adamfp8",
    "ao-adamwfp8",
    "adamw_schedulefree+aggressive",
    "adamw_schedulefree+no_kahan",
    "soap",
    "sdnq-adamw",
    "sdnq-adamw+no_quant",
    "sdnq-adafactor",
    "sdnq-came",
    "sdnq-lion",
    "sdnq-muon",
    "sdnq-muon+quantized_matmul",
    "muon",
)

Arguments = Mapping[str, type]
_EVERY: Arguments = {"weight_decay": float}
_OF_TORCH: Arguments = {**_EVERY, "eps": float, "maximize": bool, "foreach": bool}
_OF_OPTIMI: Arguments = {**_EVERY, "eps": float, "max_lr": float, "decouple_lr": bool, "kahan_sum": bool, "foreach": bool, "triton": bool}
_WITHOUT_EPS: Arguments = {name: kind for name, kind in _OF_OPTIMI.items() if name != "eps"}
_OF_BNB: Arguments = {**_EVERY, "eps": float, "min_8bit_size": int, "percentile_clipping": int, "block_wise": bool}
BNB_KINDS = ("adagrad", "adam", "adamw", "lion", "ademamix")


def _bitsandbytes() -> dict[str, Arguments]:
    """Every rule in 32 and 8 bits; all but AdaGrad and Adam also with its state paged out of the GPU."""
    found: dict[str, Arguments] = {}
    for kind in BNB_KINDS:
        arguments = {name: type_ for name, type_ in _OF_BNB.items() if name != "eps" or kind != "lion"}
        paged = ("",) if kind in ("adagrad", "adam") else ("", "-paged")
        found |= {f"bnb-{kind}{bits}{page}": arguments for bits in ("", "8bit") for page in paged}
    return found


ARGUMENTS: Mapping[str, Arguments] = {
    "adamw_bf16": _OF_OPTIMI,
    "torch-adam": {**_OF_TORCH, "amsgrad": bool, "fused": bool},
    "torch-adamw": {**_OF_TORCH, "amsgrad": bool, "fused": bool},
    "torch-sgd": {**_EVERY, "momentum": float, "dampening": float, "nesterov": bool, "maximize": bool, "foreach": bool, "fused": bool},
    "torch-radam": {**_OF_TORCH, "decoupled_weight_decay": bool},
    "torch-nadam": {**_OF_TORCH, "momentum_decay": float, "decoupled_weight_decay": bool},
    "torch-rmsprop": {**_OF_TORCH, "alpha": float, "momentum": float, "centered": bool},
    "torch-adagrad": {**_OF_TORCH, "lr_decay": float, "initial_accumulator_value": float, "fused": bool},
    "torch-adadelta": {**_OF_TORCH, "rho": float},
    "torch-adafactor": {**_EVERY, "d": float, "maximize": bool, "foreach": bool},
    "torch-adamax": _OF_TORCH,
    "torch-asgd": {**_EVERY, "lambd": float, "alpha": float, "t0": float, "maximize": bool, "foreach": bool},
    "optimi-adamw": _OF_OPTIMI,
    "optimi-stableadamw": _OF_OPTIMI,
    "optimi-lion": _WITHOUT_EPS,
    "optimi-radam": {**_OF_OPTIMI, "decouple_wd": bool},
    "optimi-ranger": {**_OF_OPTIMI, "decouple_wd": bool, "k": int, "alpha": float},
    "optimi-adan": {**_OF_OPTIMI, "adam_wd": bool},
    "optimi-adam": {**_OF_OPTIMI, "decouple_wd": bool},
    "optimi-sgd": {**_WITHOUT_EPS, "momentum": float, "dampening": bool, "decouple_wd": bool, "torch_init": bool},
    "adamw_schedulefree": {**_EVERY, "eps": float, "r": float, "weight_lr_power": float, "foreach": bool},
    "prodigy": {
        **_EVERY,
        "eps": float,
        "decouple": bool,
        "use_bias_correction": bool,
        "safeguard_warmup": bool,
        "d0": float,
        "d_coef": float,
    },
    **_bitsandbytes(),
}
"""Optimizer -> the arguments that ``optimizer_config`` may give it; None leaves one to the optimizer."""

WITHOUT_BETAS = frozenset(
    [
        *("torch-sgd", "torch-rmsprop", "torch-adagrad", "torch-adadelta", "torch-adafactor", "torch-asgd"),
        *("optimi-sgd", "bnb-adagrad", "bnb-adagrad8bit"),
    ]
)
"""Optimizers whose rule has no betas."""
SCHEDULE_FREE = frozenset(["adamw_schedulefree"])
"""Optimizers that replace the learning-rate curve: after the warm-up the rate stays at its peak."""
READS_EVERY_TENSOR = ("prodigy", "torch-adafactor", "torch-asgd", "optimi-stableadamw")
"""Optimizers that read numbers from the device for each tensor in each step, so that a GPU stands still each time."""


class OptimizerOptions(OptionGroup):
    """How the weights move."""

    optimizer: Literal[
        "adamw_bf16",
        "torch-adam",
        "torch-adamw",
        "torch-sgd",
        "torch-radam",
        "torch-nadam",
        "torch-rmsprop",
        "torch-adagrad",
        "torch-adadelta",
        "torch-adafactor",
        "torch-adamax",
        "torch-asgd",
        "optimi-adamw",
        "optimi-stableadamw",
        "optimi-lion",
        "optimi-radam",
        "optimi-ranger",
        "optimi-adan",
        "optimi-adam",
        "optimi-sgd",
        "adamw_schedulefree",
        "prodigy",
        "bnb-adagrad",
        "bnb-adagrad8bit",
        "bnb-adam",
        "bnb-adam8bit",
        "bnb-adamw",
        "bnb-adamw-paged",
        "bnb-adamw8bit",
        "bnb-adamw8bit-paged",
        "bnb-lion",
        "bnb-lion-paged",
        "bnb-lion8bit",
        "bnb-lion8bit-paged",
        "bnb-ademamix",
        "bnb-ademamix-paged",
        "bnb-ademamix8bit",
        "bnb-ademamix8bit-paged",
    ] = option(
        "adamw_bf16",
        "Update rule. adamw_bf16 keeps bfloat16 weights with Kahan summation, so that small steps count; on float32 weights it is AdamW. "
        "prodigy finds the rate itself and wants learning_rate=1. Those that begin with bnb- need bitsandbytes and a GPU. "
        "torch-adamw and torch-adam update all weights in one fused operator where type and device allow; "
        "optimizer_config=fused=false turns that off. "
        f"{', '.join(READS_EVERY_TENSOR[:-1])} and {READS_EVERY_TENSOR[-1]} read from the device for every tensor in every step, "
        "which makes a GPU wait.",
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
