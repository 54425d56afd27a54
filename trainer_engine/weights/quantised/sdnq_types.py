"""Quantises with SDNQ: whole numbers of 2 to 16 bits and short floating-point numbers, with scales for groups of weights."""

from __future__ import annotations

import importlib
import sys
import zlib
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from trainer_engine.config.precisions import Precision
from trainer_engine.config.sdnq_settings import SdnqSettings
from trainer_engine.weights.quantised.layer import Library, QuantisedLinear

KEYS = ("weight", "scale", "scale_2", "scale_zero_point", "zero_point", "zero_point_scale", "zero_point_2", "svd_up", "svd_down")
"""The library's names of the tensors that stand for one weight."""


class Sdnq(Library):
    def __init__(self, settings: SdnqSettings, seed: int) -> None:
        self.settings, self.seed = settings, seed

    def quantised(self, name: str, layer: nn.Linear, row: Precision) -> nn.Module:
        _load(compiles=self.settings.compiles and layer.weight.device.type == "cuda")
        arguments = self.settings.arguments(name, row.library_name)
        return SdnqLinear(layer, arguments, self.seed ^ zlib.crc32(name.encode()), is_static=self.settings.is_static)

    def keeps(self, name: str) -> bool:
        return self.settings.keeps(name)

    def variant(self, name: str) -> str:
        """What distinguishes the settings of this layer from those of others of its shape."""
        return " ".join(f"{key}={value}" for key, value in sorted(self.settings.arguments(name, "").items()) if value != "")


def _load(*, compiles: bool) -> None:
    """Import the library, which decides then whether it compiles its kernels. On a CPU that takes minutes."""
    if "sdnq" not in sys.modules:
        with nullcontext() if compiles else torch._dynamo.config.patch(disable=True):
            importlib.import_module("sdnq")


class SdnqLinear(QuantisedLinear):
    """Holds the library's tensors, or the exact weights where they are to be quantised for each product."""

    def __init__(self, layer: nn.Linear, arguments: dict[str, Any], seed: int, *, is_static: bool) -> None:
        super().__init__(layer)
        self.arguments, self.seed = arguments, seed
        self.dequantizer: Any = None
        if not is_static:
            self.register_buffer("exact", layer.weight.detach(), persistent=False)
            return
        self.dequantizer, tensors = self._quantised(layer.weight.detach())
        for key in KEYS:
            self.register_buffer(f"sdnq_{key}", tensors.get(key), persistent=False)

    def _quantised(self, weight: Tensor) -> tuple[Any, dict[str, Tensor | None]]:
        from sdnq.quantizer import sdnq_quantize_layer_weight

        # The singular vectors and stochastic rounding are random; a resumed run must get the same weights.
        with torch.no_grad(), torch.random.fork_rng([weight.device] if weight.device.type == "cuda" else []):
            torch.manual_seed(self.seed)
            found: tuple[Any, dict[str, Tensor | None]] = sdnq_quantize_layer_weight(
                weight.clone(), layer_class_name="Linear", torch_dtype=weight.dtype, **self.arguments
            )
        return found

    def _tensors(self) -> tuple[Any, dict[str, Tensor | None]]:
        if self.dequantizer is None:
            assert isinstance(self.exact, Tensor)
            return self._quantised(self.exact)
        return self.dequantizer, {key: getattr(self, f"sdnq_{key}") for key in KEYS}

    def dequantised(self, dtype: torch.dtype) -> Tensor:
        if self.dequantizer is None:
            assert isinstance(self.exact, Tensor)
            return self.exact.to(dtype)
        dequantizer, tensors = self._tensors()
        with torch.no_grad():
            weight: Tensor = dequantizer(**tensors, skip_quantized_matmul=dequantizer.use_quantized_matmul, dtype=dtype, skip_compile=True)
        return weight

    def product(self, x: Tensor) -> Tensor:
        dequantizer, tensors = self._tensors()
        if not dequantizer.use_quantized_matmul:
            return super().product(x)
        from sdnq.forward import get_forward_func

        forward = get_forward_func("Linear", dequantizer.quantized_matmul_dtype, True)
        output: Tensor = forward(SimpleNamespace(**tensors, sdnq_dequantizer=dequantizer, bias=self.bias_in(x.dtype)), x)
        return output
