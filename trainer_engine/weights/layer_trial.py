"""Tests whether a quantised layer computes what its weights say."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

Layer = (nn.Linear, nn.Conv2d)
"""Layer classes whose weights are quantised."""
ROWS = (1, 2, 33)
"""Numbers of input rows: kernels handle one row, a few rows, and an incomplete block differently."""
KERNEL_ERROR = 0.05
"""Largest relative error of a kernel against its dequantised weights in float32. bfloat16 alone causes 0.02 at most."""
PACKED_STEP = 16
"""How many weights of a row PyTorch's packed 8-bit kernel for bfloat16 reads at once."""
SEED = 0


def shape_of(layer: nn.Linear | nn.Conv2d) -> str:
    """Describes the properties of a layer that decide which kernel computes it."""
    bias = "with bias" if layer.bias is not None else "without bias"
    dtype = str(layer.weight.dtype).removeprefix("torch.")
    if isinstance(layer, nn.Linear):
        return f"Linear {layer.in_features} -> {layer.out_features} {bias} in {dtype}"
    window = f"{layer.kernel_size}, stride {layer.stride}, padding {layer.padding}, dilation {layer.dilation}, {layer.groups} groups"
    return f"Conv2d {layer.in_channels} -> {layer.out_channels} {bias} in {dtype}, window {window}"


def kernel_fault(layer: nn.Linear | nn.Conv2d, preset: str, device: torch.device, inputs: Sequence[torch.dtype]) -> str:
    """Why a layer must not be tried at all; empty if it may be.

    NOTE: torch._weight_int8pack_mm, which quanto calls on a CPU for rows of a multiple of four bfloat16 numbers, reads 16 weights at a
    time without checking the length of a row. Other lengths crash the process on some processors (AVX-512: aligned loads at unaligned
    addresses) and give values of 1e12 on others.
    """
    if device.type != "cpu" or preset != "int8-quanto" or torch.bfloat16 not in inputs or not isinstance(layer, nn.Linear):
        return ""
    if layer.in_features % 4 or layer.in_features % PACKED_STEP == 0:
        return ""
    return f"the processor's 8-bit kernel for bfloat16 reads rows of a multiple of {PACKED_STEP}"


def fault_of(
    quantised: nn.Module,
    layer: nn.Linear | nn.Conv2d,
    parameters: Mapping[str, nn.Parameter],
    inputs: Sequence[torch.dtype],
    device: torch.device,
    autocast: Callable[[], AbstractContextManager[None]],
) -> str:
    """Describes what is wrong with a quantised layer; empty if nothing is. Raises the exceptions of the kernel.

    ``layer`` is the original layer and ``parameters`` are its parameters before quantisation. The output and the gradient of the input
    are compared with those of the dequantised weights in float32, and the dequantised weights with the original ones.
    """
    quantised.requires_grad_(False)
    with torch.no_grad():
        rounded: Tensor = quantised.weight.dequantize()  # type: ignore[operator]  # a method of quanto's tensors
        weight = parameters["weight"].to(rounded.device)
        if not _norm(rounded - weight) <= _norm(weight):
            return "the rounded weights are further from the exact ones than zeros"
    bias = parameters["bias"].to(device).float() if "bias" in parameters else None
    generator = torch.Generator().manual_seed(SEED)
    for dtype in inputs:
        for rows in ROWS:
            x = torch.randn(_input_shape(layer, rows), generator=generator).to(device, dtype)
            found, wanted = x.clone().requires_grad_(), x.float().requires_grad_()
            with torch.enable_grad():
                with autocast():
                    answer = quantised(found)
                exact = _forward(layer, wanted, rounded.float(), bias)
                gradient = torch.randn(answer.shape, generator=generator).to(device, answer.dtype)
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
