"""The autoencoder of Wan: clips of frames, with a mean and a standard deviation for each latent channel."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from trainer_engine.families.common.autoencoder import Autoencoder


class ClipAutoencoder(Autoencoder):
    """Takes clips (B, 3, F, H, W), whose latents are (B, C, f, h, w): (mode - mean) / standard deviation of the channel.

    NOTE: diffusers keeps the last frames of every layer in the model itself. Two threads that compute with it at once get wrong numbers.
    """

    layout = torch.preserve_format

    def _scaled(self, vae: Any, latents: Tensor) -> Tensor:
        mean, deviation = self._statistics(vae, latents)
        return (latents - mean) / deviation

    def _unscaled(self, vae: Any, latents: Tensor) -> Tensor:
        mean, deviation = self._statistics(vae, latents)
        return latents / (1 / deviation) + mean  # rounded as the pipelines of diffusers round it

    @staticmethod
    def _statistics(vae: Any, like: Tensor) -> tuple[Tensor, Tensor]:
        """(mean, standard deviation), each (1, C, 1, 1, 1)."""
        mean, deviation = (like.new_tensor(values).view(1, -1, 1, 1, 1) for values in (vae.config.latents_mean, vae.config.latents_std))
        return mean, deviation
