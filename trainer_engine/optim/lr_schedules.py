"""Computes the learning rate from the step alone, so that a checkpoint needs no state of the schedule."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from trainer_engine.config.options.run import ScheduleOptions

Curve = Callable[[float, ScheduleOptions], float]
"""(Progress p after the warm-up, in (0, 1], and options) -> height between floor (0) and peak (1)."""


def _constant(p: float, options: ScheduleOptions) -> float:
    return 1.0


def _linear(p: float, options: ScheduleOptions) -> float:
    return 1.0 - p


def _cosine(p: float, options: ScheduleOptions) -> float:
    """Falls along half a cosine wave (Loshchilov and Hutter, 2017, eq. 5, one cycle)."""
    return 0.5 * (1.0 + math.cos(math.pi * p))


def _cosine_with_restarts(p: float, options: ScheduleOptions) -> float:
    """Falls along half a wave ``lr_num_cycles`` times, each from the peak (Loshchilov and Hutter, 2017). The last ends at the floor."""
    return 0.0 if p >= 1.0 else _cosine(p * options.lr_num_cycles % 1.0, options)


def _sine(p: float, options: ScheduleOptions) -> float:
    """Falls from the peak to the floor and rises back, ``lr_num_cycles`` times."""
    return 0.5 * (1.0 + math.cos(2.0 * math.pi * options.lr_num_cycles * p))


def _polynomial(p: float, options: ScheduleOptions) -> float:
    return math.pow(1.0 - p, options.lr_power)


CURVES: Mapping[str, Curve] = MappingProxyType(
    {
        "constant": _constant,
        "constant_with_warmup": _constant,
        "linear": _linear,
        "cosine": _cosine,
        "cosine_with_restarts": _cosine_with_restarts,
        "sine": _sine,
        "polynomial": _polynomial,
    }
)


@dataclass(frozen=True)
class Schedule:
    """The learning rate of each optimizer step of a run."""

    options: ScheduleOptions
    peak: float
    """The rate at step ``lr_warmup_steps``. Without a warm-up the first step is already below it, if the curve falls."""
    total_steps: int

    def at(self, step: int) -> float:
        """Returns the learning rate of optimizer step ``step``, counted from 1. The warm-up is linear and its first step is above 0."""
        warmup = self.options.lr_warmup_steps
        if step < warmup:
            return self.peak * step / warmup
        progress = min(1.0, (step - warmup) / max(1, self.total_steps - warmup))
        floor = min(self.options.lr_end, self.peak)
        return floor + (self.peak - floor) * CURVES[self.options.lr_scheduler](progress, self.options)
