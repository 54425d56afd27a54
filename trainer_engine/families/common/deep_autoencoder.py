"""Autoencoders of deep compression, whose latents have one cell for 32 x 32 pixels (Chen et al., 2024, "Deep Compression Autoencoder")."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderDC
from torch import Tensor

from trainer_engine.families.common.autoencoder import Autoencoder
from trainer_engine.weights.loading import PartFinder, load_diffusers


class DeepAutoencoder(Autoencoder):
    """Latents are what the encoder returns, times the scaling factor: there is no distribution that they are a sample of, and no shift."""

    def _encoded(self, vae: Any, pixels: Tensor) -> Tensor:
        latents: Tensor = vae.encode(pixels, return_dict=False)[0]
        return latents

    def _scaled(self, vae: Any, latents: Tensor) -> Tensor:
        scaled: Tensor = latents * vae.config.scaling_factor
        return scaled

    def _unscaled(self, vae: Any, latents: Tensor) -> Tensor:
        unscaled: Tensor = latents / vae.config.scaling_factor
        return unscaled


def load_deep_vae(parts: PartFinder, dtype: torch.dtype | None) -> AutoencoderDC:
    """The autoencoder of a base model, for ``DeepAutoencoder``. ``dtype`` None keeps the type of the weights. Raises ModelUnavailable."""
    vae = load_diffusers(AutoencoderDC, parts.find("vae"), dtype)
    assert isinstance(vae, AutoencoderDC)
    return vae
