"""The first frame of a clip as the network of Wan image-to-video takes it: its latents, a mask, and what CLIP sees in it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from diffusers import WanImageToVideoPipeline
from PIL import Image, ImageOps
from torch import Tensor
from transformers import CLIPVisionModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

LATENTS, EMBEDDING = CONDITIONS = ("first_frame_latents", "first_frame_embedding")
"""Names of the cached inputs: (B, C, f, h, w) latents of the frame with blank ones behind it, (B, T, D) states of the image encoder."""
STRIDE = 4
"""Frames of a latent frame: the mask has a channel for each."""
USED_STATES = -2
"""The network takes the states before the last layer of the image encoder."""


class FrameEncoder:
    """CLIP's image encoder. Loaded when it is first needed."""

    def __init__(
        self, load_encoder: Callable[[], CLIPVisionModel], load_processor: Callable[[], CLIPImageProcessorPil], device: torch.device
    ) -> None:
        self._load_encoder = load_encoder
        self._load_processor = load_processor
        self._device = device
        self._loaded: tuple[CLIPVisionModel, CLIPImageProcessorPil] | None = None

    @property
    def parts(self) -> tuple[CLIPVisionModel, CLIPImageProcessorPil]:
        """The network on its device, and what prepares images for it."""
        found = self._loaded  # another thread may drop it at any time
        if found is None:
            self._loaded = found = self._load_encoder().to(self._device), self._load_processor()
        return found

    def free(self) -> None:
        self._loaded = None

    @torch.no_grad()
    def encode(self, frames: Tensor, *, exact: bool = False) -> Tensor:
        """Frames (B, 3, H, W) in [-1, 1] -> (B, T, D) on the CPU. ``exact`` computes in float32."""
        encoder, processor = self.parts
        usual = encoder.dtype
        pixels = processor(images=[picture_of(frame) for frame in frames], return_tensors="pt")["pixel_values"]
        try:
            if exact:
                encoder.to(torch.float32)
            seen = encoder(pixel_values=pixels.to(self._device, encoder.dtype), output_hidden_states=True)
        finally:
            encoder.to(usual)
        states: Tensor = seen.hidden_states[USED_STATES]
        return states.cpu()


def picture_of(frame: Tensor) -> Image.Image:
    """(3, H, W) in [-1, 1] -> the image that it was made of."""
    values = ((frame.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return Image.fromarray(np.ascontiguousarray(values.permute(1, 2, 0).cpu().numpy()))


def first_of(pixels: Tensor) -> Tensor:
    """The first frame (B, 3, H, W) of clips (B, 3, T, H, W), or images (B, 3, H, W) themselves."""
    return pixels[:, :, 0] if pixels.dim() == 5 else pixels


def with_blank_frames(pixels: Tensor) -> Tensor:
    """Clips (B, 3, T, H, W) that show their first frame and then 0, a medium grey. An image is a clip of one frame."""
    if pixels.dim() == 4:
        return pixels.unsqueeze(2)
    blank = torch.zeros_like(pixels)
    blank[:, :, 0] = pixels[:, :, 0]
    return blank


def masked(latents: Tensor) -> Tensor:
    """Latents (B, C, f, h, w) of a first frame behind their mask (B, 4, f, h, w), which is 1 where frames are given."""
    batch, _, *size = latents.shape
    mask = latents.new_zeros(batch, STRIDE, *size)
    mask[:, :, :1] = 1.0
    return torch.cat([mask, latents], dim=1)


def fitted(image: Image.Image, width: int, height: int) -> Image.Image:
    """The middle of an image in the shape of a clip, so that the frame is not stretched."""
    return image if image.size == (width, height) else ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)


class ExactEncoding(WanImageToVideoPipeline):  # type: ignore[misc]
    """The pipeline of diffusers, whose encoders keep their own type under ``torch.autocast``, as they do for the cache."""

    alone: Callable[[], AbstractContextManager[None]] = nullcontext
    """``ClipAutoencoder.alone``: the thread that prepares batches may encode with the same modules."""

    def encode_image(self, *args: Any, **kwargs: Any) -> Any:
        with self.alone(), torch.autocast(self._execution_device.type, enabled=False):
            return super().encode_image(*args, **kwargs)

    def prepare_latents(self, *args: Any, **kwargs: Any) -> Any:
        with self.alone(), torch.autocast(self._execution_device.type, enabled=False):
            return super().prepare_latents(*args, **kwargs)
