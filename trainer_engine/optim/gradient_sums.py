"""Adds the gradients of the micro-batches of a step in float32, for weights of a shorter type."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Float32Sums:
    """Takes each gradient as soon as it is complete, and adds it to a sum in float32.

    PyTorch adds gradients in the type of the weight: in bfloat16 a micro-batch whose gradient is below 1/256 of the sum would be lost.
    Not for several processes, which exchange the gradients that the weights hold.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self._sums: dict[nn.Parameter, Tensor] = {}
        for parameter in parameters:
            if parameter.dtype != torch.float32:
                parameter.register_post_accumulate_grad_hook(self._take)

    def _take(self, parameter: Tensor) -> None:
        assert isinstance(parameter, nn.Parameter) and parameter.grad is not None
        gradient, parameter.grad = parameter.grad, None
        if parameter in self._sums:
            self._sums[parameter].add_(gradient)
        else:
            self._sums[parameter] = gradient.float()

    def finish(self) -> None:
        """Gives each weight its sum, rounded once to the type of the weight, and frees the sums."""
        for parameter in list(self._sums):
            parameter.grad = self._sums.pop(parameter).to(parameter.dtype)
