"""An exponential moving average of the trained weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class MovingAverage:
    """m <- d m + (1 - d) w, with d rising to ``decay`` over the first updates so that the start is forgotten: d_n = (1 + n) / (10 + n).

    The average is kept in float32 on the device of the weights: at a decay of 0.995 bfloat16 would lose every update.
    """

    def __init__(self, network: nn.Module, decay: float, update_interval: int) -> None:
        self.decay = decay
        self.update_interval = update_interval
        self.updates = 0
        self._network = network
        self._average = {name: weight.detach().float().clone() for name, weight in _trained(network)}

    def after_step(self, step: int) -> None:
        """Take in the weights after optimizer step ``step`` (from 1), if it is one of those that count."""
        if step % self.update_interval == 0:
            self.update()

    @torch.no_grad()
    def update(self) -> None:
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        weights = [weight.detach().float() for _, weight in _trained(self._network)]
        torch._foreach_lerp_(list(self._average.values()), weights, 1 - decay)
        self.updates += 1

    @contextmanager
    def in_place(self) -> Iterator[nn.Module]:
        """The network with the average as its weights, for the length of the block."""
        live = {name: weight.detach().clone() for name, weight in _trained(self._network)}
        try:
            _copy_into(self._network, self._average)
            yield self._network
        finally:
            _copy_into(self._network, live)

    def tensors(self) -> dict[str, Tensor]:
        """The average by parameter name, float32."""
        return dict(self._average)

    def restore(self, tensors: Mapping[str, Tensor], updates: int) -> None:
        """KeyError where a parameter is missing."""
        for name, average in self._average.items():
            average.copy_(tensors[name])
        self.updates = updates


def _trained(network: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, weight) for name, weight in network.named_parameters() if weight.requires_grad)


@torch.no_grad()
def _copy_into(network: nn.Module, values: Mapping[str, Tensor]) -> None:
    for name, weight in _trained(network):
        weight.copy_(values[name])
