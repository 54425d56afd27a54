"""The learning rate as a pure function of the step: nothing to save, nothing to restore."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from trainer_engine.config.options.run import ScheduleOptions

Curve = Callable[[float, ScheduleOptions], float]
"""(progress p in (0, 1] after the warm-up, options) -> height in [0, 1] between floor and peak."""


def _constant(p: float, options: ScheduleOptions) -> float:
    return 1.0


def _linear(p: float, options: ScheduleOptions) -> float:
    return 1.0 - p


def _cosine(p: float, options: ScheduleOptions) -> float:
    """Half a wave (Loshchilov and Hutter, 2017, eq. 5, one cycle)."""
    return 0.5 * (1.0 + math.cos(math.pi * p))


def _cosine_with_restarts(p: float, options: ScheduleOptions) -> float:
    """Half a wave ``lr_num_cycles`` times, each from the peak; the last ends at the floor (Loshchilov and Hutter, 2017)."""
    return 0.0 if p >= 1.0 else _cosine(p * options.lr_num_cycles % 1.0, options)


def _sine(p: float, options: ScheduleOptions) -> float:
    """Whole waves: from the peak down to the floor and back, ``lr_num_cycles`` times."""
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
    """``at(step)`` for step = 1 .. total_steps."""

    options: ScheduleOptions
    peak: float
    """``learning_rate``: reached at step ``lr_warmup_steps``; without a warm-up the curve leaves it with the first step."""
    total_steps: int

    def at(self, step: int) -> float:
        """Learning rate of the ``step``-th optimizer step, counted from 1. The warm-up rises linearly; its first step is above 0."""
        warmup = self.options.lr_warmup_steps
        if step < warmup:
            return self.peak * step / warmup
        progress = min(1.0, (step - warmup) / max(1, self.total_steps - warmup))
        floor = min(self.options.lr_end, self.peak)
        return floor + (self.peak - floor) * CURVES[self.options.lr_scheduler](progress, self.options)
