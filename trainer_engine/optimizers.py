"""The update rules that can be asked for, each a builder in one table."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import optimi
import torch
from torch import nn
from torch.optim import Optimizer

from trainer_engine.contract.errors import InvalidOptions, Problem
from trainer_engine.contract.options.optimizer import OptimizerOptions

SET_ELSEWHERE = ("self", "params", "lr", "betas", "gradient_release", "capturable", "differentiable")


@dataclass(frozen=True)
class UpdateRule:
    """A class of optimizer and the arguments it gets unless the user says otherwise."""

    make: Callable[..., Optimizer]
    betas: tuple[float, float]
    defaults: Mapping[str, Any]


RULES: Mapping[str, UpdateRule] = MappingProxyType(
    {
        # Kahan summation keeps what rounding to bfloat16 takes from each update (Kahan, 1965); optimi does it only on short weights.
        "adamw_bf16": UpdateRule(optimi.AdamW, (0.9, 0.999), {"weight_decay": 0.01, "eps": 1e-6}),
        "torch-adamw": UpdateRule(torch.optim.AdamW, (0.9, 0.999), {"weight_decay": 0.01, "eps": 1e-8}),
        "optimi-adamw": UpdateRule(optimi.AdamW, (0.9, 0.99), {"weight_decay": 0.01, "eps": 1e-6}),
    }
)


def build_optimizer(options: OptimizerOptions, parameters: Iterable[nn.Parameter]) -> Optimizer:
    """Raises InvalidOptions where ``optimizer_config`` names an argument that the optimizer does not have, or a value that it refuses."""
    rule = RULES[options.optimizer]
    allowed = sorted(set(inspect.signature(rule.make).parameters) - set(SET_ELSEWHERE))
    unknown = [name for name in options.optimizer_config if name not in allowed]
    if unknown:
        raise InvalidOptions([_unknown_argument(options.optimizer, name, allowed) for name in unknown])
    betas = rule.betas
    if options.optimizer_beta1 is not None and options.optimizer_beta2 is not None:
        betas = (options.optimizer_beta1, options.optimizer_beta2)
    arguments = {**rule.defaults, **options.optimizer_config}
    try:
        return rule.make(list(parameters), lr=options.learning_rate, betas=betas, **arguments)
    except (TypeError, ValueError, ImportError, RuntimeError) as error:
        message = f"{options.optimizer} refuses its arguments: {error}"
        raise InvalidOptions([Problem.error("optimizer_config", "refused", message, got=dict(options.optimizer_config))]) from error


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
