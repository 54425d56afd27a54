"""Encodes batches of pixels, and handles what can go wrong: too little memory, and latents that are not finite."""

from __future__ import annotations

import torch
from torch import Tensor

from trainer_engine.contract.errors import OutOfMemory
from trainer_engine.families.base import Family
from trainer_engine.families.modules import free_device_memory

LARGEST_DEVIATION = 100.0
"""Scaled latents have a standard deviation of about one. A value far above it means that the encoder overflowed."""


def trouble_with(latents: Tensor) -> str:
    """Why latents (C, h, w) cannot be used; empty if they can."""
    if not bool(latents.isfinite().all()):
        return "its latents are not finite"
    if not bool(latents.any()):
        return "its latents are all zero"
    deviation = float(latents.float().std())
    return f"its latents have a standard deviation of {deviation:.3g}" if deviation > LARGEST_DEVIATION else ""


class BatchEncoder:
    """Encodes images. It halves its batches permanently when memory runs out, and encodes unusable latents again in float32."""

    def __init__(self, family: Family) -> None:
        self.family = family
        self.largest: int | None = None
        """The most images in one batch; None until memory has run out."""

    def encode(self, pixels: Tensor) -> list[Tensor | str]:
        """Encode (B, 3, H, W) in [-1, 1], or clips (B, 3, T, H, W). For each its latents (C, ...), or why it has none.

        Raises OutOfMemory.
        """
        results: list[Tensor | str] = []
        while len(results) < len(pixels):
            rest = pixels[len(results) :]
            part = rest[: self.largest or len(rest)]
            try:
                latents = self.family.encode_images(part)
            except torch.OutOfMemoryError as error:
                self._take_less(len(part), part, error)
                continue
            results += [self._checked(encoded, source) for encoded, source in zip(latents, part, strict=True)]
        return results

    def _take_less(self, images: int, pixels: Tensor, error: torch.OutOfMemoryError) -> None:
        if images == 1:
            height, width = pixels.shape[-2:]
            raise OutOfMemory(
                f"One image of {width}x{height} does not fit into the device's memory while encoding: {error}",
                hint="set vae_enable_patch_conv or vae_enable_tiling, lower resolution, or free the device's memory",
            ) from error
        self.largest = images // 2
        free_device_memory(self.family.devices.device)

    def _checked(self, latents: Tensor, pixels: Tensor) -> Tensor | str:
        if not trouble_with(latents):
            return latents.clone()
        exact = self.family.encode_images(pixels[None], exact=True)[0]
        trouble = trouble_with(exact)
        return f"{trouble}, also in float32" if trouble else exact.clone()
