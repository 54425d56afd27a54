"""Quantises with bitsandbytes: 4-bit numbers at the quantiles of a normal distribution (NF4; Dettmers et al., 2023)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trainer_engine.config.precisions import Precision
from trainer_engine.weights.quantised.layer import Library, QuantisedLinear

BLOCK = 64
"""Weights that share a scale."""


class Bitsandbytes(Library):
    def quantised(self, name: str, layer: nn.Linear, row: Precision) -> nn.Module:
        return BnbLinear(layer, row.library_name)


class BnbLinear(QuantisedLinear):
    """Holds packed pairs of 4-bit numbers, and the largest absolute value of each block.

    NOTE: not ``Linear4bit`` of the library: on some CPUs that packs its weights anew for evaluations, with a kernel from the hub.
    """

    packed: Tensor
    largest: Tensor
    code: Tensor

    def __init__(self, layer: nn.Linear, kind: str) -> None:
        super().__init__(layer)
        from bitsandbytes import functional

        packed, state = functional.quantize_4bit(layer.weight.detach().contiguous(), blocksize=BLOCK, quant_type=kind)
        self.kind = kind
        self.register_buffer("packed", packed, persistent=False)
        self.register_buffer("largest", state.absmax, persistent=False)
        self.register_buffer("code", state.code, persistent=False)

    def dequantised(self, dtype: torch.dtype) -> Tensor:
        from bitsandbytes import functional

        shape = torch.Size((self.out_features, self.in_features))
        state = functional.QuantState(absmax=self.largest, shape=shape, code=self.code, blocksize=BLOCK, quant_type=self.kind, dtype=dtype)
        return functional.dequantize_4bit(self.packed, state)
