"""The autoencoder between pixels and latents, as the image families use it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image
from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from trainer_engine.config.options.computation import AutoencoderOptions
from trainer_engine.families.common.autoencoder_memory import save_memory

CELLS = 2
"""Edge of the squares of latent cells that a ``ShuffledAutoencoder`` puts together."""


class ImageNotFinite(ValueError):
    """An image with NaN or infinite pixels; converted to 8 bits it would look like a black image."""


class Autoencoder:
    """Loaded when it is first needed. Convolutions are up to twice as fast with the channels last in memory.

    One thread at a time computes with it: while the run generates images, the thread that prepares batches may have to encode an image
    whose cache entry is damaged, in another type.
    """

    layout = torch.channels_last

    def __init__(self, load: Callable[[], Any], device: torch.device, memory: AutoencoderOptions) -> None:
        self._load = load
        self._device = device
        self._memory = memory
        self._vae: Any = None
        self._computing = threading.RLock()

    @property
    def model(self) -> Any:
        vae = self._vae  # another thread may let go of it at any time
        if vae is None:
            vae = self._load().eval().requires_grad_(False).to(self._device, memory_format=self.layout)
            save_memory(vae, self._memory)
            self._vae = vae
        return vae

    @contextmanager
    def alone(self) -> Iterator[None]:
        """No other thread computes with it in the block: for pipelines that call the model themselves."""
        with self._computing:
            yield

    @property
    def is_loaded(self) -> bool:
        return self._vae is not None

    def free(self) -> None:
        self._vae = None

    @torch.no_grad()
    def encode(self, pixels: Tensor, *, exact: bool = False) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> (B, C, h, w) on the CPU: (mode - shift) x scale, in the type that was computed in. The most likely
        latents, not a sample: the cache holds what the image is. ``exact`` computes in float32."""
        with self._computing, _computing_in(self.model, torch.float32 if exact else None) as vae:
            latents = self._encoded(vae, pixels.to(self._device, vae.dtype)).float()
            return self._scaled(vae, latents).to(vae.dtype).cpu()

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """(B, C, h, w) scaled latents -> (B, 3, H, W) float32 in about [-1, 1]; again in float32 where a short type overflows.

        Raises ImageNotFinite.
        """
        if not latents.isfinite().all():
            raise ImageNotFinite("its latents are not finite")
        for dtype in (None, torch.float32):
            pixels = self._decode(latents, dtype)
            if pixels.isfinite().all():
                return pixels
        raise ImageNotFinite("its pixels are not finite")

    def picture(self, latents: Tensor) -> Image.Image:
        """The image that scaled latents (1, C, h, w) show. Raises ImageNotFinite."""
        image: Image.Image = VaeImageProcessor().postprocess(self.decode(latents), output_type="pil")[0]
        return image

    def _decode(self, latents: Tensor, dtype: torch.dtype | None) -> Tensor:
        with self._computing, _computing_in(self.model, dtype) as vae:
            unscaled = self._unscaled(vae, latents.to(self._device, torch.float32))
            return self._decoded(vae, unscaled.to(vae.dtype)).float()

    def _encoded(self, vae: Any, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, C, h, w): the latents of the autoencoder, in its type."""
        latents: Tensor = vae.encode(pixels).latent_dist.mode()
        return latents

    def _decoded(self, vae: Any, latents: Tensor) -> Tensor:
        """The inverse of ``_encoded``."""
        pixels: Tensor = vae.decode(latents, return_dict=False)[0]
        return pixels

    def _scaled(self, vae: Any, latents: Tensor) -> Tensor:
        """The latents of the autoencoder as the network takes them, in float32."""
        scaled: Tensor = (latents - (vae.config.shift_factor or 0.0)) * vae.config.scaling_factor
        return scaled

    def _unscaled(self, vae: Any, latents: Tensor) -> Tensor:
        """The inverse of ``_scaled``."""
        unscaled: Tensor = latents / vae.config.scaling_factor + (vae.config.shift_factor or 0.0)
        return unscaled


class ShuffledAutoencoder(Autoencoder):
    """With latents as Flux.2 has them: squares of 2 x 2 cells become channels, each of which is normalised with its own statistics."""

    epsilon: float | None = None
    """Added to the variance of each channel; None for what the configuration of the autoencoder states."""

    def _scaled(self, vae: Any, latents: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, 4 C, h/2, w/2)."""
        mean, deviation = self._statistics(vae)
        return (pixel_unshuffle(latents, CELLS) - mean) / deviation

    def _unscaled(self, vae: Any, latents: Tensor) -> Tensor:
        mean, deviation = self._statistics(vae)
        return pixel_shuffle(latents * deviation + mean, CELLS)

    def _statistics(self, vae: Any) -> tuple[Tensor, Tensor]:
        """(mean, standard deviation), each (1, 4 C, 1, 1): those of the batch norm that the autoencoder was trained with."""
        mean, variance = (statistic.float().view(1, -1, 1, 1) for statistic in (vae.bn.running_mean, vae.bn.running_var))
        return mean, (variance + (vae.config.batch_norm_eps if self.epsilon is None else self.epsilon)).sqrt()


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
        """(mean, standard deviation), each (1, C, 1, ...) for latents like these: what the published latents were measured to have."""
        shape = (1, -1, *(1 for _ in like.shape[2:]))
        mean, deviation = (like.new_tensor(values).view(shape) for values in (vae.config.latents_mean, vae.config.latents_std))
        return mean, deviation


class FrameAutoencoder(ClipAutoencoder):
    """An autoencoder of clips, to which an image is a clip of one frame. Each channel is normalised with its own statistics."""

    def _encoded(self, vae: Any, pixels: Tensor) -> Tensor:
        return super()._encoded(vae, pixels.unsqueeze(2)).squeeze(2)

    def _decoded(self, vae: Any, latents: Tensor) -> Tensor:
        return super()._decoded(vae, latents.unsqueeze(2)).squeeze(2)


@contextmanager
def _computing_in(vae: Any, dtype: torch.dtype | None) -> Iterator[Any]:
    """The autoencoder in another type for the length of the block; None leaves it in its own."""
    usual = vae.dtype
    if dtype is None or dtype == usual:
        yield vae
        return
    try:
        yield vae.to(dtype)
    finally:
        vae.to(usual)
