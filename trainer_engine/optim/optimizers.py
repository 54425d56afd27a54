"""Builds the optimizer of a run and switches it between training and evaluation."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import optimi
import prodigyopt
import schedulefree
import torch
from torch import nn
from torch.optim import Optimizer

from trainer_engine.config.optimizers import OPTIMIZERS
from trainer_engine.config.options.optimizer import OptimizerOptions
from trainer_engine.config.rules.optimizer import argument_problems
from trainer_engine.contract.errors import InvalidOptions, Problem

FUSED_DEVICES = ("cpu", "cuda")
FUSED_TYPES = (torch.float32, torch.bfloat16)


Builder = Callable[..., Optimizer]


def _bitsandbytes(name: str) -> Builder:
    """Builds a class of bitsandbytes, which is imported when the optimizer is built: only machines with a GPU have it."""

    def build(parameters: Iterable[nn.Parameter], **arguments: Any) -> Optimizer:
        optimizer: Optimizer = getattr(importlib.import_module("bitsandbytes.optim"), name)(parameters, **arguments)
        return optimizer

    return build


BUILDERS: Mapping[str, Builder] = MappingProxyType(
    {
        "adamw_bf16": optimi.AdamW,
        "torch-adam": torch.optim.Adam,
        "torch-adamw": torch.optim.AdamW,
        "torch-sgd": torch.optim.SGD,
        "torch-radam": torch.optim.RAdam,
        "torch-nadam": torch.optim.NAdam,
        "torch-rmsprop": torch.optim.RMSprop,
        "torch-adagrad": torch.optim.Adagrad,
        "torch-adadelta": torch.optim.Adadelta,
        "torch-adafactor": torch.optim.Adafactor,
        "torch-adamax": torch.optim.Adamax,
        "torch-asgd": torch.optim.ASGD,
        "optimi-adamw": optimi.AdamW,
        "optimi-stableadamw": optimi.StableAdamW,
        "optimi-lion": optimi.Lion,
        "optimi-radam": optimi.RAdam,
        "optimi-ranger": optimi.Ranger,
        "optimi-adan": optimi.Adan,
        "optimi-adam": optimi.Adam,
        "optimi-sgd": optimi.SGD,
        "adamw_schedulefree": schedulefree.AdamWScheduleFree,
        "prodigy": prodigyopt.Prodigy,
        "bnb-adagrad": _bitsandbytes("Adagrad"),
        "bnb-adagrad8bit": _bitsandbytes("Adagrad8bit"),
        "bnb-adam": _bitsandbytes("Adam"),
        "bnb-adam8bit": _bitsandbytes("Adam8bit"),
        "bnb-adamw": _bitsandbytes("AdamW"),
        "bnb-adamw-paged": _bitsandbytes("PagedAdamW"),
        "bnb-adamw8bit": _bitsandbytes("AdamW8bit"),
        "bnb-adamw8bit-paged": _bitsandbytes("PagedAdamW8bit"),
        "bnb-lion": _bitsandbytes("Lion"),
        "bnb-lion-paged": _bitsandbytes("PagedLion"),
        "bnb-lion8bit": _bitsandbytes("Lion8bit"),
        "bnb-lion8bit-paged": _bitsandbytes("PagedLion8bit"),
        "bnb-ademamix": _bitsandbytes("AdEMAMix"),
        "bnb-ademamix-paged": _bitsandbytes("PagedAdEMAMix"),
        "bnb-ademamix8bit": _bitsandbytes("AdEMAMix8bit"),
        "bnb-ademamix8bit-paged": _bitsandbytes("PagedAdEMAMix8bit"),
    }
)
"""Name of an optimizer in ``config.optimizers`` -> its class."""


def build_optimizer(options: OptimizerOptions, *groups: Iterable[nn.Parameter]) -> Optimizer:
    """Builds the optimizer that the options name. Each of several groups of parameters can have a learning rate of its own.

    Raises InvalidOptions if ``optimizer_config`` holds an argument that the optimizer does not have, or a value that it refuses.
    """
    spec = OPTIMIZERS[options.optimizer]
    problems = list(argument_problems(options.optimizer, options.optimizer_config))
    if problems:
        raise InvalidOptions(problems)
    parts = [list(group) for group in groups]
    trained = [parameter for part in parts for parameter in part]
    given = options.arguments
    arguments: dict[str, Any] = dict(spec.defaults)
    arguments |= {name: spec.arguments[name].kind(value) for name, value in given.items() if value is not None}
    if spec.has_fused and "fused" not in given and not arguments.get("foreach") and can_fuse(trained):
        arguments["fused"] = True
    if options.fuse_optimizer and "fused" in spec.arguments:
        arguments["fused"] = True
    if options.optimizer_release_gradients:
        arguments["gradient_release"] = True
    if options.betas is not None:
        arguments["betas"] = options.betas
    try:
        grouped = trained if len(parts) == 1 else [{"params": part} for part in parts]
        optimizer = BUILDERS[spec.name](grouped, lr=options.learning_rate, **arguments)
    except (TypeError, ValueError, ImportError, RuntimeError) as error:
        message = f"{spec.name} refuses its arguments: {error}"
        raise InvalidOptions([Problem.error("optimizer_config", "refused", message, got=dict(options.optimizer_config))]) from error
    if spec.finds_rate and options.prodigy_steps:
        keep_rate_after(optimizer, options.prodigy_steps)
    return optimizer


def keep_rate_after(optimizer: Optimizer, steps: int) -> None:
    """Lets Prodigy keep its rate d once it has taken so many steps, by its own count of them, which checkpoints hold.

    A candidate of d_coef 0 never raises d, and a growth rate of 1 keeps d where it is.
    """

    def keep(chosen: Optimizer, *_: Any) -> None:
        if chosen.param_groups[0]["k"] >= steps:
            for group in chosen.param_groups:
                group["d_coef"], group["growth_rate"] = 0.0, 1.0

    optimizer.register_step_pre_hook(keep)


def can_fuse(parameters: Sequence[nn.Parameter]) -> bool:
    """Returns whether PyTorch's fused kernels accept these weights.

    NOTE: on a CPU these kernels go through memory linearly. If a weight and its gradient have different strides, the numbers are wrong and
    no error is raised. Gradients of contiguous weights are contiguous (torch.autograd's layout contract).
    """
    return bool(parameters) and all(
        weight.device.type in FUSED_DEVICES and weight.dtype in FUSED_TYPES and weight.is_contiguous() for weight in parameters
    )


def set_learning_rates(optimizer: Optimizer, learning_rates: Sequence[float]) -> None:
    """Sets the learning rate of each parameter group."""
    for group, learning_rate in zip(optimizer.param_groups, learning_rates, strict=True):
        group["lr"] = learning_rate


@contextmanager
def evaluating(optimizer: Optimizer) -> Iterator[None]:
    """Puts the averaged weights of a schedule-free optimizer in place for the block (Defazio et al., 2024).

    Such an optimizer trains other weights than those to evaluate and save. The trained weights return bit for bit after the block, which
    the optimizer's own conversion does not ensure. Does nothing for other optimizers.
    """
    if not isinstance(optimizer, schedulefree.AdamWScheduleFree):
        yield
        return
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    trained = [parameter.detach().clone() for parameter in parameters]
    try:
        optimizer.eval()
        yield
    finally:
        optimizer.train()
        with torch.no_grad():
            for parameter, value in zip(parameters, trained, strict=True):
                parameter.copy_(value)


def start_training(optimizer: Optimizer) -> None:
    """Puts a schedule-free optimizer into its training mode. Does nothing for other optimizers."""
    if isinstance(optimizer, schedulefree.AdamWScheduleFree):
        optimizer.train()
