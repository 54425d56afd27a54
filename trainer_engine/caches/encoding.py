"""Encodes batches of pixels, and handles what can go wrong: too little memory, and numbers that are not finite."""

from __future__ import annotations

import torch
from torch import Tensor

from trainer_engine.contract.errors import OutOfMemory
from trainer_engine.families.base import Family
from trainer_engine.families.modules import free_device_memory

Entry = dict[str, Tensor]
"""What is cached of a sample: its latents, and the conditions that its family makes of its pixels."""
LATENTS = "latents"
"""Name of the latents (C, ...) in an entry."""
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


def trouble_in(entry: Entry) -> str:
    """Why an entry cannot be used; empty if it can."""
    odd = [name for name, tensor in entry.items() if name != LATENTS and not bool(tensor.isfinite().all())]
    return trouble_with(entry[LATENTS]) or (f"its {odd[0].replace('_', ' ')} is not finite" if odd else "")


class BatchEncoder:
    """Encodes images. It halves its batches permanently when memory runs out, and encodes unusable latents again in float32."""

    def __init__(self, family: Family) -> None:
        self.family = family
        self.largest: int | None = None
        """The most images in one batch; None until memory has run out."""

    def encode(self, pixels: Tensor) -> list[Entry | str]:
        """Encode (B, 3, H, W) in [-1, 1], or clips (B, 3, T, H, W). For each its entry, or why it has none.

        Raises OutOfMemory.
        """
        results: list[Entry | str] = []
        while len(results) < len(pixels):
            rest = pixels[len(results) :]
            part = rest[: self.largest or len(rest)]
            try:
                entries = self._entries(part)
            except torch.OutOfMemoryError as error:
                self._take_less(len(part), part, error)
                continue
            results += [self._checked(entry, source) for entry, source in zip(entries, part, strict=True)]
        return results

    def _entries(self, pixels: Tensor, *, exact: bool = False) -> list[Entry]:
        stacked: Entry = {LATENTS: self.family.encode_images(pixels, exact=exact)}
        if self.family.caches_conditions:
            stacked |= self.family.encode_conditions(pixels, exact=exact)
        return [{name: tensor[row].clone() for name, tensor in stacked.items()} for row in range(len(pixels))]

    def _take_less(self, images: int, pixels: Tensor, error: torch.OutOfMemoryError) -> None:
        if images == 1:
            height, width = pixels.shape[-2:]
            raise OutOfMemory(
                f"One image of {width}x{height} does not fit into the device's memory while encoding: {error}",
                hint="set vae_enable_patch_conv or vae_enable_tiling, lower resolution, or free the device's memory",
            ) from error
        self.largest = images // 2
        free_device_memory(self.family.devices.device)

    def _checked(self, entry: Entry, pixels: Tensor) -> Entry | str:
        if not trouble_in(entry):
            return entry
        [exact] = self._entries(pixels[None], exact=True)
        trouble = trouble_in(exact)
        return f"{trouble}, also in float32" if trouble else exact
