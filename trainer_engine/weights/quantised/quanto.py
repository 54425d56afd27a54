"""Quantises with optimum-quanto, whose tensors know their own gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from trainer_engine.config.precisions import Precision
from trainer_engine.weights.quantised.layer import Library

PACKED_STEP = 16
"""How many weights of a row PyTorch's packed 8-bit kernel for bfloat16 reads at once."""


class Quanto(Library):
    layers = (nn.Linear, nn.Conv2d)

    def quantised(self, name: str, layer: Any, row: Precision) -> nn.Module:
        from optimum.quanto import freeze, qtypes, quantize

        alone, own = nn.Module(), name.rpartition(".")[2]
        alone.add_module(own, layer)
        quantize(alone, weights=qtypes[row.library_name])
        freeze(alone)
        quantised: nn.Module = getattr(alone, own)
        return quantised

    def dequantised(self, layer: Any) -> Tensor:
        weight: Tensor = layer.weight.dequantize()
        return weight.detach().float()

    def fault_before(self, layer: Any, row: Precision, device: torch.device, inputs: tuple[torch.dtype, ...]) -> str:
        """Why a layer must not be tried at all; empty if it may be.

        NOTE: torch._weight_int8pack_mm, which quanto calls on a CPU for rows of a multiple of four bfloat16 numbers, reads 16 weights at a
        time without checking the length of a row. Other lengths crash the process on some processors (AVX-512: aligned loads at unaligned
        addresses) and give values of 1e12 on others.
        """
        if device.type != "cpu" or row.name != "int8-quanto" or torch.bfloat16 not in inputs or not isinstance(layer, nn.Linear):
            return ""
        if layer.in_features % 4 or layer.in_features % PACKED_STEP == 0:
            return ""
        return f"the processor's 8-bit kernel for bfloat16 reads rows of a multiple of {PACKED_STEP}"
