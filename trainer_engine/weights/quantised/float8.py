"""Keeps weights in PyTorch's own 8-bit floating-point type. Needs no library, and no GPU that multiplies such numbers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trainer_engine.config.precisions import Precision
from trainer_engine.weights.quantised.layer import Library, QuantisedLinear


class Float8(Library):
    def quantised(self, name: str, layer: nn.Linear, row: Precision) -> nn.Module:
        return Float8Linear(layer, getattr(torch, row.library_name))


class Float8Linear(QuantisedLinear):
    """Holds each row divided by a scale of its own, so that its largest weight is the largest number of the type."""

    packed: Tensor
    scale: Tensor
    """(out, 1), float32."""

    def __init__(self, layer: nn.Linear, dtype: torch.dtype) -> None:
        super().__init__(layer)
        weight = layer.weight.detach().float()
        scale = weight.abs().amax(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny) / torch.finfo(dtype).max
        self.register_buffer("packed", (weight / scale).to(dtype), persistent=False)
        self.register_buffer("scale", scale, persistent=False)

    def dequantised(self, dtype: torch.dtype) -> Tensor:
        return self.packed.to(dtype) * self.scale.to(dtype)
