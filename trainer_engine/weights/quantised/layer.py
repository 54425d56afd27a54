"""A frozen linear layer whose weights a library holds in a type of its own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from trainer_engine.config.precisions import Precision


class QuantisedLinear(nn.Linear, ABC):
    """Computes with quantised weights, and passes gradients on through them as if they were exact.

    The weights are buffers, because nothing trains them. A library's kernel may have no gradient, or a wrong one where it also rounds the
    inputs: the backward pass multiplies by the dequantised weights (a straight-through estimator; Bengio et al., 2013). It dequantises
    them again, so that no step keeps them. Adapters take the layer for the ``nn.Linear`` that it is.
    """

    def __init__(self, layer: nn.Linear) -> None:
        """Takes sizes and bias of ``layer``. A subclass registers its weights as buffers."""
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.bias = layer.bias
        self.loaded_dtype = layer.weight.dtype
        """Type of the weights before they were quantised."""

    @property
    def weight(self) -> Tensor:  # type: ignore[override]  # nobody may train or replace it
        """The weights (out, in), dequantised for each access, in the type that they had before."""
        return self.dequantised(self.loaded_dtype)

    @abstractmethod
    def dequantised(self, dtype: torch.dtype) -> Tensor:
        """The weights (out, in) in ``dtype``."""

    def product(self, x: Tensor) -> Tensor:
        """The layer's output for inputs (..., in), without a gradient."""
        return linear(x, self.dequantised(x.dtype), self.bias_in(x.dtype))

    def bias_in(self, dtype: torch.dtype) -> Tensor | None:
        return None if self.bias is None else self.bias.to(dtype)

    def forward(self, input: Tensor) -> Tensor:
        if torch.is_autocast_enabled(input.device.type):
            input = input.to(torch.get_autocast_dtype(input.device.type))
        output: Tensor = _StraightThrough.apply(input, self)  # type: ignore[no-untyped-call]
        return output


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: QuantisedLinear) -> Tensor:
        ctx.layer = layer
        with torch.autocast(x.device.type, enabled=False):
            return layer.product(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        return gradient @ ctx.layer.dequantised(gradient.dtype), None


class Library(ABC):
    """Quantises single layers. Each file of this folder has one, and ``trainer_engine/weights/quantization.py`` a table of them."""

    layers: tuple[type[nn.Module], ...] = (nn.Linear,)
    """Classes of layers that it quantises."""

    @abstractmethod
    def quantised(self, name: str, layer: Any, row: Precision) -> nn.Module:
        """The layer with weights of this type, on the device where ``layer`` is. ``name`` is the layer's name in its network.

        Leaves the parameters of ``layer`` as they are, or takes them. Raises RuntimeError, ValueError, TypeError, AssertionError or
        ImportError if it cannot.
        """

    def dequantised(self, layer: Any) -> Tensor:
        """The weights of a layer that it made, in float32."""
        return layer.dequantised(torch.float32)  # type: ignore[no-any-return]

    def keeps(self, name: str) -> bool:
        """Whether the options keep this layer unquantised."""
        return False

    def variant(self, name: str) -> str:
        """What distinguishes the settings of this layer from those of others of its shape."""
        return ""

    def fault_before(self, layer: Any, row: Precision, device: torch.device, inputs: tuple[torch.dtype, ...]) -> str:
        """Why a layer must not be tried at all; empty if it may be."""
        return ""


class Float8(Library):
    """PyTorch's own 8-bit floating-point type. It needs no library, and no GPU that multiplies such numbers."""

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
