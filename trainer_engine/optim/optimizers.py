"""The update rules that can be asked for, each a builder in one table."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import optimi
import prodigyopt
import schedulefree
import torch
from torch import nn
from torch.optim import Optimizer

from trainer_engine.config.options.optimizer import ARGUMENTS, BNB_KINDS, OptimizerOptions
from trainer_engine.contract.errors import InvalidOptions, Problem

Betas = tuple[float, ...]
ADAM: Betas = (0.9, 0.999)
LONG: Betas = (0.9, 0.99)
FUSED_DEVICES = ("cpu", "cuda")
FUSED_TYPES = (torch.float32, torch.bfloat16)


@dataclass(frozen=True)
class UpdateRule:
    """A class of optimizer and the arguments it gets unless the user says otherwise."""

    make: Callable[..., Optimizer]
    betas: Betas | None = None
    """None for a rule without betas."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    has_fused: bool = False
    """Whether one operator can update all weights; it is taken wherever they allow it (``can_fuse``)."""


def _bitsandbytes(name: str) -> Callable[..., Optimizer]:
    """A class of a library that only machines with a GPU have."""

    def make(parameters: Iterable[nn.Parameter], **arguments: Any) -> Optimizer:
        made: Optimizer = getattr(importlib.import_module("bitsandbytes.optim"), name)(parameters, **arguments)
        return made

    return make


def _of_bitsandbytes() -> dict[str, UpdateRule]:
    classes = {"adagrad": "Adagrad", "adam": "Adam", "adamw": "AdamW", "lion": "Lion", "ademamix": "AdEMAMix"}
    betas: dict[str, Betas | None] = {"adagrad": None, "lion": LONG, "ademamix": (0.9, 0.999, 0.9999)}
    found = {}
    for kind in BNB_KINDS:
        for suffix in ("", "8bit"):
            found[f"bnb-{kind}{suffix}"] = UpdateRule(_bitsandbytes(f"{classes[kind]}{suffix}"), betas.get(kind, ADAM))
            paged = _bitsandbytes(f"Paged{classes[kind]}{suffix}")
            found[f"bnb-{kind}{suffix}-paged"] = UpdateRule(paged, betas.get(kind, ADAM))
    return {name: rule for name, rule in found.items() if name in ARGUMENTS}


RULES: Mapping[str, UpdateRule] = MappingProxyType(
    {
        # Kahan summation keeps what rounding to bfloat16 takes from each update (Kahan, 1965); optimi does it only on short weights.
        "adamw_bf16": UpdateRule(optimi.AdamW, ADAM, {"weight_decay": 0.01, "eps": 1e-6}),
        "torch-adam": UpdateRule(torch.optim.Adam, ADAM, has_fused=True),
        "torch-adamw": UpdateRule(torch.optim.AdamW, ADAM, {"weight_decay": 0.01, "eps": 1e-8}, has_fused=True),
        "torch-sgd": UpdateRule(torch.optim.SGD),
        "torch-radam": UpdateRule(torch.optim.RAdam, ADAM),
        "torch-nadam": UpdateRule(torch.optim.NAdam, ADAM),
        "torch-rmsprop": UpdateRule(torch.optim.RMSprop),
        "torch-adagrad": UpdateRule(torch.optim.Adagrad),
        "torch-adadelta": UpdateRule(torch.optim.Adadelta),
        "torch-adafactor": UpdateRule(torch.optim.Adafactor),
        "torch-adamax": UpdateRule(torch.optim.Adamax, ADAM),
        "torch-asgd": UpdateRule(torch.optim.ASGD),
        "optimi-adamw": UpdateRule(optimi.AdamW, LONG, {"weight_decay": 0.01, "eps": 1e-6}),
        "optimi-stableadamw": UpdateRule(optimi.StableAdamW, LONG),
        "optimi-lion": UpdateRule(optimi.Lion, LONG),
        "optimi-radam": UpdateRule(optimi.RAdam, LONG),
        "optimi-ranger": UpdateRule(optimi.Ranger, LONG),
        "optimi-adan": UpdateRule(optimi.Adan, (0.98, 0.92, 0.99)),
        "optimi-adam": UpdateRule(optimi.Adam, LONG),
        "optimi-sgd": UpdateRule(optimi.SGD),
        "adamw_schedulefree": UpdateRule(schedulefree.AdamWScheduleFree, ADAM),
        "prodigy": UpdateRule(prodigyopt.Prodigy, ADAM),
        **_of_bitsandbytes(),
    }
)


def build_optimizer(options: OptimizerOptions, parameters: Iterable[nn.Parameter]) -> Optimizer:
    """Raises InvalidOptions where ``optimizer_config`` names an argument that the optimizer does not have, or a value that it refuses."""
    rule = RULES[options.optimizer]
    allowed = sorted(ARGUMENTS[options.optimizer])
    unknown = [name for name in options.optimizer_config if name not in allowed]
    if unknown:
        raise InvalidOptions([_unknown_argument(options.optimizer, name, allowed) for name in unknown])
    learning = list(parameters)
    arguments: dict[str, Any] = {**rule.defaults, **options.optimizer_config}
    if rule.has_fused and not arguments.get("foreach") and can_fuse(learning):
        arguments.setdefault("fused", True)
    if rule.betas is not None:
        arguments["betas"] = rule.betas
        if options.optimizer_beta1 is not None and options.optimizer_beta2 is not None:
            arguments["betas"] = (options.optimizer_beta1, options.optimizer_beta2, *rule.betas[2:])
    try:
        return rule.make(learning, lr=options.learning_rate, **arguments)
    except (TypeError, ValueError, ImportError, RuntimeError) as error:
        message = f"{options.optimizer} refuses its arguments: {error}"
        raise InvalidOptions([Problem.error("optimizer_config", "refused", message, got=dict(options.optimizer_config))]) from error


def can_fuse(parameters: Sequence[nn.Parameter]) -> bool:
    """Whether PyTorch's fused kernels take these weights.

    NOTE: on a CPU they walk over memory, and give wrong numbers without a word where a weight and its gradient lie there in another
    order. Gradients of contiguous weights are contiguous (torch.autograd's layout contract).
    """
    return bool(parameters) and all(
        weight.device.type in FUSED_DEVICES and weight.dtype in FUSED_TYPES and weight.is_contiguous() for weight in parameters
    )


def _unknown_argument(optimizer: str, name: str, allowed: list[str]) -> Problem:
    message = f"{optimizer} has no argument {name!r}."
    return Problem.error("optimizer_config", "unknown_argument", message, got=name, expected=f"one of {', '.join(allowed)}")


def note_on_precision(options: OptimizerOptions, weights: torch.dtype) -> str:
    """A sentence for people where the optimizer does something else than its name says; else empty."""
    if options.optimizer == "adamw_bf16" and weights == torch.float32:
        return "adamw_bf16 works on float32 weights here, as plain AdamW: mixed_precision is not bf16."
    return ""


def set_learning_rate(optimizer: Optimizer, learning_rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


@contextmanager
def evaluating(optimizer: Optimizer) -> Iterator[None]:
    """The weights that a schedule-free optimizer means, for the length of the block (Defazio et al., 2024): it trains on others.

    Those it trains on come back bit for bit, which its own way there and back would not give. Does nothing with other optimizers.
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
    """Schedule-free optimizers want to be told; the others have no such mode."""
    if isinstance(optimizer, schedulefree.AdamWScheduleFree):
        optimizer.train()
