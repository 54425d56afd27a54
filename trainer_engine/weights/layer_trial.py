"""Tests whether a quantised layer computes what its weights say."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

ROWS = (1, 2, 33)
"""Numbers of input rows: kernels handle one row, a few rows, and an incomplete block differently."""
KERNEL_ERROR = 0.05
"""Largest relative error of a kernel against its dequantised weights in float32. bfloat16 alone causes 0.02 at most."""
SEED = 0


def shape_of(layer: nn.Linear | nn.Conv2d) -> str:
    """Describes the properties of a layer that decide which kernel computes it."""
    bias = "with bias" if layer.bias is not None else "without bias"
    dtype = str(layer.weight.dtype).removeprefix("torch.")
    if isinstance(layer, nn.Linear):
        return f"Linear {layer.in_features} -> {layer.out_features} {bias} in {dtype}"
    window = f"{layer.kernel_size}, stride {layer.stride}, padding {layer.padding}, dilation {layer.dilation}, {layer.groups} groups"
    return f"Conv2d {layer.in_channels} -> {layer.out_channels} {bias} in {dtype}, window {window}"


@dataclass(frozen=True)
class Trial:
    """Compares a quantised layer with the layer that it replaces."""

    layer: nn.Linear | nn.Conv2d
    """The original layer."""
    parameters: Mapping[str, nn.Parameter]
    """Its parameters before quantisation."""
    inputs: Sequence[torch.dtype]
    """Number types of the layer's inputs."""
    device: torch.device
    autocast: Callable[[], AbstractContextManager[None]]

    def fault_of(self, quantised: nn.Module, rounded: Tensor) -> str:
        """Describes what is wrong with a quantised layer; empty if nothing is. Raises the exceptions of the kernel.

        ``rounded``: its weights, dequantised. The output and the gradient of the input are compared with those of these weights in
        float32, and these weights with the original ones.
        """
        quantised.requires_grad_(False)
        weight = self.parameters["weight"].detach().to(rounded.device)
        if not _norm(rounded - weight) <= _norm(weight):
            return "the rounded weights are further from the exact ones than zeros"
        bias = self.parameters["bias"].to(self.device).float() if "bias" in self.parameters else None
        generator = torch.Generator().manual_seed(SEED)
        for dtype in self.inputs:
            for rows in ROWS:
                x = torch.randn(_input_shape(self.layer, rows), generator=generator).to(self.device, dtype)
                found, wanted = x.clone().requires_grad_(), x.float().requires_grad_()
                with torch.enable_grad():
                    with self.autocast():
                        answer = quantised(found)
                    exact = _forward(self.layer, wanted, rounded.float(), bias)
                    gradient = torch.randn(answer.shape, generator=generator).to(self.device, answer.dtype)
                    (ours_back,) = torch.autograd.grad(answer, found, gradient)
                    (exact_back,) = torch.autograd.grad(exact, wanted, gradient.float())
                for what, ours, theirs in (("outputs", answer, exact), ("gradients", ours_back, exact_back)):
                    distance, size = _norm(ours.detach().float() - theirs.detach()), _norm(theirs.detach())
                    if not distance <= KERNEL_ERROR * size:
                        return f"its {what} are off by {distance / size:.2g} times their size"
        return ""


def _norm(tensor: Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor, dtype=torch.float32))


def _input_shape(layer: nn.Linear | nn.Conv2d, rows: int) -> tuple[int, ...]:
    if isinstance(layer, nn.Linear):
        return (1, rows, layer.in_features)
    height, width = ((size - 1) * step + rows for size, step in zip(layer.kernel_size, layer.dilation, strict=True))
    return (1, layer.in_channels, height, width)


def _forward(layer: nn.Linear | nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if isinstance(layer, nn.Linear):
        return nn.functional.linear(x, weight, bias)
    output: Tensor = layer._conv_forward(x, weight, bias)
    return output
