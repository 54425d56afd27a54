"""An exponential moving average of the trained weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from trainer_engine.runtime.sharding import own_part, sharded_as, spread_like

GROUP_BYTES = 64 * 2**20
"""Most bytes of float32 copies of bfloat16 weights that an update holds at a time. A single larger weight is copied alone."""


class MovingAverage:
    """An exponential moving average m of the trained weights w: m <- d m + (1 - d) w.

    In update n the decay is d = min(``decay``, (1 + n) / (10 + n)), so that the average soon forgets the first weights. The average is
    kept in float32: at a decay of 0.995 rounding to bfloat16 would lose every update. Of sharded weights, each process averages its part.
    """

    def __init__(
        self,
        network: nn.Module,
        decay: float,
        update_interval: int,
        *,
        device: torch.device | None = None,
        warmup_steps: int = 0,
        is_grouped: bool = True,
    ) -> None:
        """``device``: where the average lies; None means with the weights. ``warmup_steps``: optimizer steps at the start in which it is a
        copy of the weights. ``is_grouped``: updates many weights with one call.
        """
        self.decay = decay
        self.update_interval = update_interval
        self.warmup_steps = warmup_steps
        self._is_grouped = is_grouped
        self._device = device
        self.updates = 0
        self._network = network
        # NOTE: listed once, because a walk over the modules of a large network takes milliseconds of every step.
        self._weights = {name: weight for name, weight in network.named_parameters() if weight.requires_grad}
        self._average = {name: self._as_average(weight).clone() for name, weight in self._weights.items()}
        self._groups = [([self._average[name] for name in names], [self._weights[name] for name in names]) for names in self._name_groups()]

    def _name_groups(self) -> Iterator[list[str]]:
        """Groups the names of the weights, in order, so that the float32 copies of a group fit into ``GROUP_BYTES``."""
        names: list[str] = []
        copied = 0
        for name, weight in self._weights.items():
            own = 0 if weight.dtype == torch.float32 else self._average[name].nbytes
            if names and copied + own > GROUP_BYTES:
                yield names
                names, copied = [], 0
            names.append(name)
            copied += own
        if names:
            yield names

    def _as_average(self, weight: Tensor) -> Tensor:
        """The weight in float32 where the average lies. It crosses in its own type, which may be shorter."""
        return own_part(weight.detach()).to(self._device or weight.device).float()

    def after_step(self, step: int) -> None:
        """Updates the average if optimizer step ``step``, counted from 1, is a multiple of ``update_interval``.

        During the warm-up it becomes a copy of the weights in every step.
        """
        if step <= self.warmup_steps:
            self._mirror()
        elif step % self.update_interval == 0:
            self.update()

    @torch.no_grad()
    def _mirror(self) -> None:
        for name, weight in self._weights.items():
            self._average[name].copy_(own_part(weight.detach()))

    @torch.no_grad()
    def update(self) -> None:
        """Moves the average towards the current weights."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for averages, weights in self._groups:
            current = [self._as_average(weight) for weight in weights]
            if self._is_grouped:
                torch._foreach_lerp_(averages, current, 1 - decay)
                continue
            for average, weight in zip(averages, current, strict=True):
                average.lerp_(weight, 1 - decay)
        self.updates += 1

    def begin(self) -> None:
        """Takes the current weights as an average of long standing: the next update has all of ``decay``."""
        self._mirror()
        self.updates = max(0, math.ceil((10 * self.decay - 1) / (1 - self.decay)))

    @contextmanager
    def in_place(self) -> Iterator[nn.Module]:
        """Puts the average into the network for the block; the trained weights return after it."""
        live = {name: own_part(weight.detach()).clone() for name, weight in self._weights.items()}
        try:
            self._put(self._average)
            yield self._network
        finally:
            self._put(live)

    @torch.no_grad()
    def _put(self, values: Mapping[str, Tensor]) -> None:
        for name, weight in self._weights.items():
            own_part(weight.detach()).copy_(values[name])

    def tensors(self) -> dict[str, Tensor]:
        """Returns the average by parameter name, in float32; of sharded weights, sharded as they are."""
        return {name: sharded_as(self._average[name], weight) for name, weight in self._weights.items()}

    def restore(self, tensors: Mapping[str, Tensor], updates: int) -> None:
        """Continues from a saved average. Raises KeyError if a parameter is missing."""
        for name, average in self._average.items():
            average.copy_(own_part(spread_like(tensors[name], self._weights[name])))
        self.updates = updates
