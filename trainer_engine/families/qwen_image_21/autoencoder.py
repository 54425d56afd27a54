"""The autoencoder of Qwen-Image 2.1, whose images have a fourth channel for opacity."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image
from torch import Tensor

from trainer_engine.families.common.autoencoder import FrameAutoencoder

OPAQUE = 255


class RgbaAutoencoder(FrameAutoencoder):
    """Takes every image as opaque, and decodes opacity with colours."""

    def _encoded(self, vae: Any, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, C, h, w)."""
        return super()._encoded(vae, torch.cat([pixels, torch.ones_like(pixels[:, :1])], dim=1))

    def _unscaled(self, vae: Any, latents: Tensor) -> Tensor:
        mean, deviation = self._statistics(vae, latents)
        return latents * deviation + mean

    def picture(self, latents: Tensor) -> Image.Image:
        """The image, without its fourth channel if nothing of it is transparent. Raises ImageNotFinite."""
        image = super().picture(latents)
        return image.convert("RGB") if image.mode == "RGBA" and image.getchannel("A").getextrema() == (OPAQUE, OPAQUE) else image
