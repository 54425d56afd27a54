"""Saves memory of an autoencoder: tiles, slices, and convolutions in strips of rows."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer_engine.config.options.computation import AutoencoderOptions

STRIP_NUMBERS = 2**24
"""Most numbers in the input of one strip; a single row of a wider input may have more."""


def save_memory(vae: Any, options: AutoencoderOptions, *, strip_numbers: int = STRIP_NUMBERS) -> None:
    """Apply the options to an autoencoder of diffusers. One without tiles or slices stays as it is: its family's spec says so."""
    if options.vae_enable_tiling and hasattr(vae, "use_tiling"):
        vae.enable_tiling()
    if options.vae_enable_slicing and hasattr(vae, "use_slicing"):
        vae.enable_slicing()
    if options.vae_enable_patch_conv:
        compute_in_strips(vae, strip_numbers)


def compute_in_strips(module: nn.Module, strip_numbers: int) -> None:
    """Make each convolution of a module compute its output in strips of rows, one after the other.

    A strip is computed from its own rows and those that its kernel reaches, so that the result is that of the complete convolution up to
    the rounding of other kernels. Convolutions with other padding than zeros stay as they are.
    """
    for part in module.modules():
        if isinstance(part, (nn.Conv2d, nn.Conv3d)) and part.padding_mode == "zeros" and not isinstance(part.padding, str):
            part._conv_forward = _Strips(part, strip_numbers)  # type: ignore[method-assign, assignment]


class _Strips:
    """The convolution of ``nn.Conv2d`` or ``nn.Conv3d``, with the same arguments as their ``_conv_forward``."""

    def __init__(self, conv: nn.Conv2d | nn.Conv3d, strip_numbers: int) -> None:
        self.conv = conv
        self.strip_numbers = strip_numbers

    def __call__(self, pixels: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """(B, C, [F,] H, W) -> (B, C', [F',] H', W')."""
        conv = self.conv
        stride, dilation = int(conv.stride[-2]), int(conv.dilation[-2])
        edge = int(conv.padding[-2])
        reach = dilation * (int(conv.kernel_size[-2]) - 1) + 1
        height = pixels.shape[-2]
        rows = (height + 2 * edge - reach) // stride + 1
        strip = max(1, self.strip_numbers // max(1, pixels.numel() // height) // stride)
        if strip >= rows:
            return self._convolved(pixels, weight, bias, [int(one) for one in conv.padding])
        inner = [*(int(one) for one in conv.padding[:-2]), 0, int(conv.padding[-1])]
        output: Tensor | None = None
        for first in range(0, rows, strip):
            last = min(first + strip, rows)
            top, bottom = first * stride - edge, (last - 1) * stride - edge + reach
            part = pixels[..., max(top, 0) : min(bottom, height), :]
            part = F.pad(part, (0, 0, max(-top, 0), max(bottom - height, 0)))
            computed = self._convolved(part, weight, bias, inner)
            if output is None:
                is_last = computed.ndim == 4 and computed.is_contiguous(memory_format=torch.channels_last)
                shape = (*computed.shape[:-2], rows, computed.shape[-1])
                layout = torch.channels_last if is_last else torch.contiguous_format
                output = torch.empty(shape, dtype=computed.dtype, device=computed.device, memory_format=layout)
            output[..., first:last, :] = computed
        assert output is not None
        return output

    def _convolved(self, pixels: Tensor, weight: Tensor, bias: Tensor | None, padding: list[int]) -> Tensor:
        conv = self.conv
        how: tuple[Any, ...] = (conv.stride, padding, conv.dilation, conv.groups)
        return F.conv2d(pixels, weight, bias, *how) if pixels.ndim == 4 else F.conv3d(pixels, weight, bias, *how)
