"""The autoencoder of Wan: clips of frames, with a mean and a standard deviation for each latent channel."""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers import AutoencoderKLWan
from torch import Tensor

from trainer_engine.config.options.computation import AutoencoderOptions
from trainer_engine.families.common.autoencoder import ImageNotFinite
from trainer_engine.families.common.autoencoder_memory import save_memory


class ClipAutoencoder:
    """Loaded when it is first needed."""

    def __init__(self, load: Callable[[], AutoencoderKLWan], device: torch.device, memory: AutoencoderOptions) -> None:
        self._load = load
        self._device = device
        self._memory = memory
        self._vae: AutoencoderKLWan | None = None

    @property
    def model(self) -> AutoencoderKLWan:
        vae = self._vae  # another thread may drop it at any time
        if vae is None:
            vae = self._load().eval().requires_grad_(False).to(self._device)
            save_memory(vae, self._memory)
            self._vae = vae
        return vae

    def free(self) -> None:
        self._vae = None

    @torch.no_grad()
    def encode(self, pixels: Tensor, *, exact: bool = False) -> Tensor:
        """(B, 3, F, H, W) in [-1, 1] -> (B, C, f, h, w) on the CPU: (mode - mean) / standard deviation of the channel.

        The latents have the type that was computed in; ``exact`` computes in float32.
        """
        vae = self.model
        usual = vae.dtype
        try:
            if exact:
                vae.to(torch.float32)
            latents = vae.encode(pixels.to(self._device, vae.dtype)).latent_dist.mode().float()
        finally:
            vae.to(usual)
        mean, deviation = self._statistics(vae, latents)
        scaled: Tensor = (latents - mean) / deviation
        return scaled.to(torch.float32 if exact else usual).cpu()

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """(B, C, f, h, w) scaled latents -> (B, 3, F, H, W) float32 in about [-1, 1]. Raises ImageNotFinite."""
        vae = self.model
        mean, deviation = self._statistics(vae, latents.to(self._device).float())
        unscaled = latents.to(self._device).float() * deviation + mean
        pixels: Tensor = vae.decode(unscaled.to(vae.dtype), return_dict=False)[0].float()
        if not pixels.isfinite().all():
            raise ImageNotFinite("its pixels are not finite")
        return pixels

    @staticmethod
    def _statistics(vae: AutoencoderKLWan, like: Tensor) -> tuple[Tensor, Tensor]:
        """(mean, standard deviation), each (1, C, 1, 1, 1)."""
        mean, deviation = (like.new_tensor(values).view(1, -1, 1, 1, 1) for values in (vae.config.latents_mean, vae.config.latents_std))
        return mean, deviation
