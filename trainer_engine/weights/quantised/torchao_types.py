"""Quantises with torchao: 8-bit and 4-bit weights, some with inputs that are rounded for each product."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from trainer_engine.config.precisions import Precision
from trainer_engine.weights.quantised.layer import Library, QuantisedLinear

GROUP = 32
"""Weights of a row that share a scale, for 4-bit types."""
PACKED_4BIT = "Int4WeightOnlyConfig"


class Torchao(Library):
    def quantised(self, name: str, layer: nn.Linear, row: Precision) -> nn.Module:
        return TorchaoLinear(layer, row)


class TorchaoLinear(QuantisedLinear):
    """Holds one tensor of torchao, which computes a product of its own."""

    packed: Tensor

    def __init__(self, layer: nn.Linear, row: Precision) -> None:
        super().__init__(layer)
        from torchao.quantization import quantize_

        # torchao packs 4-bit weights for products in bfloat16 only, and it replaces the weight of the layer that it is given.
        weight = layer.weight.detach().to(torch.bfloat16) if row.library_name == PACKED_4BIT else layer.weight.detach()
        alone = nn.Sequential(nn.Linear(self.in_features, self.out_features, bias=False, device="meta"))
        alone[0].weight = nn.Parameter(weight, requires_grad=False)
        quantize_(alone, _configuration(row.library_name))
        packed = alone[0].weight.detach()
        if type(packed) is Tensor:
            raise ValueError(f"torchao packs rows of a multiple of its group of weights, not {self.in_features}")
        self.register_buffer("packed", packed, persistent=False)

    def dequantised(self, dtype: torch.dtype) -> Tensor:
        dequantize: Callable[[], Tensor] | None = getattr(self.packed, "dequantize", None)
        if type(self.packed).dequantize is not Tensor.dequantize and dequantize is not None:
            return dequantize().to(dtype)
        # A packed layout that only its kernel can read: the product with the unit vectors is the weights.
        identity = torch.eye(self.in_features, dtype=self.packed.dtype, device=self.packed.device)
        return linear(identity, self.packed).t().to(dtype)

    def product(self, x: Tensor) -> Tensor:
        output = linear(x.to(self.packed.dtype), self.packed).to(x.dtype)
        bias = self.bias_in(x.dtype)
        return output if bias is None else output + bias


def _configuration(name: str) -> Any:
    from torchao import quantization

    if name == PACKED_4BIT:  # the other layouts need the library mslk
        return quantization.Int4WeightOnlyConfig(group_size=GROUP, int4_packing_format="tile_packed_to_4d")
    if name == "Int8DynamicActivationIntxWeightConfig":
        granularity = quantization.PerGroup(GROUP)
        return quantization.Int8DynamicActivationIntxWeightConfig(
            weight_dtype=torch.int4,  # type: ignore[attr-defined]  # made when torch starts
            weight_granularity=granularity,
        )
    return getattr(quantization, name)()
