"""Shows latents at once: through a Tiny AutoEncoder (Boer Bohan, 2023: a distilled decoder of a few megabytes), or the family's own."""

from __future__ import annotations

from typing import Protocol

import torch
from diffusers import AutoencoderTiny
from PIL import Image
from torch import Tensor

from trainer_engine.config.options.computation import AutoencoderOptions
from trainer_engine.config.options.validation import ValidationOptions
from trainer_engine.contract.errors import ModelUnavailable
from trainer_engine.contract.events import ErrorEvent, Severity
from trainer_engine.families.base import Family
from trainer_engine.families.common.autoencoder_memory import save_memory
from trainer_engine.runtime.devices import Devices
from trainer_engine.weights.hub import Source, find_part
from trainer_engine.weights.loading import load_diffusers


def is_shown(step: int, steps: int, options: ValidationOptions) -> bool:
    """Whether sampler step ``step`` of ``steps``, counted from 1, is previewed."""
    return options.validation_preview and (step == steps or (step - 1) % options.validation_preview_steps == 0)


class Decoder(Protocol):
    """Shows latents while they are sampled."""

    name: str
    """What decodes them, for messages."""

    def decode(self, latents: Tensor) -> Image.Image:
        """(1, C, ...) scaled latents -> an image."""


class FullDecoder:
    """A family's own autoencoder."""

    name = "the autoencoder"

    def __init__(self, family: Family) -> None:
        self._family = family

    def decode(self, latents: Tensor) -> Image.Image:
        return self._family.preview(latents)


class PreviewDecoder:
    """A Tiny AutoEncoder, loaded at the first picture."""

    def __init__(self, repository: str, devices: Devices, memory: AutoencoderOptions) -> None:
        self.name = self.repository = repository
        self._devices = devices
        self._memory = memory
        self._decoder: AutoencoderTiny | None = None

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Image.Image:
        """(1, C, h, w) scaled latents -> an image of their size in pixels.

        Raises ModelUnavailable, and RuntimeError where the latents do not fit.
        """
        decoder = self._loaded()
        config = decoder.config
        unscaled = latents.to(decoder.device, decoder.dtype) / config.scaling_factor + (config.shift_factor or 0.0)
        with torch.autocast(decoder.device.type, enabled=False):
            pixels = decoder.decode(unscaled, return_dict=False)[0][0].float()
        levels = pixels.nan_to_num().clamp(-1, 1).add(1).mul(127.5).round().byte()
        return Image.fromarray(levels.permute(1, 2, 0).cpu().numpy())

    def _loaded(self) -> AutoencoderTiny:
        if self._decoder is None:
            part = find_part(Source(self.repository), "vae", bare=True)
            if part is None:
                raise ModelUnavailable(f"{self.repository} holds no Tiny AutoEncoder.", hint="look at its files on the hub")
            decoder = load_diffusers(AutoencoderTiny, part, None)
            save_memory(decoder, self._memory)
            self._decoder = decoder.eval().requires_grad_(False).to(self._devices.device)
        return self._decoder


def decoder_of(family: Family) -> Decoder:
    """The Tiny AutoEncoder of a family, or else its own autoencoder."""
    repository = family.spec.latents.preview_decoder
    return PreviewDecoder(repository, family.devices, family.options.autoencoder) if repository else FullDecoder(family)


def no_previews(decoder: str, error: Exception) -> ErrorEvent:
    """What a run says when it goes on without them."""
    hint = error.hint if isinstance(error, ModelUnavailable) else ""
    return ErrorEvent(
        code="previews_failed",
        title="No previews",
        message=f"Images are not previewed any more: {decoder}: {error}",
        hint=hint or "training and finished images go on; set validation_preview=false to be rid of this",
        severity=Severity.WARNING,
    )
