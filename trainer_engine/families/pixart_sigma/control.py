"""The pipeline of a PixArt Sigma that sees a control image (the option ``control``); the diffusers library has none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import PixArtSigmaPipeline
from PIL import Image
from torch import Tensor, nn

from trainer_engine.families.common.control import widen
from trainer_engine.families.pixart_sigma.spec import CONTROL


class PixArtSigmaControlPipeline(PixArtSigmaPipeline):  # type: ignore[misc]  # mypy does not read diffusers' types
    """Generates as ``PixArtSigmaPipeline`` does, with the latents of ``control_image`` behind the channels of the noisy latents."""

    _shown: Image.Image | Tensor
    _control: Tensor | None = None

    def widen(self) -> None:
        """Widens the transformer of a plain base model, so that it takes the adapter of a run with ``control``."""
        if not CONTROL.is_wide(self.transformer.config.in_channels):
            widen(self.transformer, CONTROL)

    def __call__(self, *args: Any, control_image: Image.Image | Tensor, **named: Any) -> Any:
        """Takes an image, which is resized to what is generated, or its scaled latents (1, C, h, w). The rest is as in the parent class."""
        self._shown = control_image
        with self._joined():
            return super().__call__(*args, **named)

    def prepare_latents(self, batch_size: int, num_channels: int, height: int, width: int, *more: Any, **named: Any) -> Tensor:
        """Noise for half of the input channels; the other half is the control image, which is encoded here: its size is known now."""
        self._control = self._latents_of(self._shown, height, width)
        latents: Tensor = super().prepare_latents(batch_size, num_channels // 2, height, width, *more, **named)
        return latents

    def _latents_of(self, shown: Image.Image | Tensor, height: int, width: int) -> Tensor:
        """(1, C, h, w): the most likely latents of an image, scaled."""
        if isinstance(shown, Tensor):
            return shown
        pixels = self.image_processor.preprocess(shown, height=height, width=width).to(self._execution_device, self.vae.dtype)
        with torch.no_grad():
            latents: Tensor = self.vae.encode(pixels).latent_dist.mode() * self.vae.config.scaling_factor
        return latents

    @contextmanager
    def _joined(self) -> Iterator[None]:
        """The transformer gets the control image as well, and gives the prediction without the variance that it may also have learned."""

        def join(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
            assert self._control is not None, "the control image is encoded before the first step"
            noisy = args[0]
            return (torch.cat([noisy, self._control.to(noisy).expand(len(noisy), -1, -1, -1)], dim=1), *args[1:]), kwargs

        def shorten(_: nn.Module, __: Any, output: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return (output[0][:, : CONTROL.channels], *output[1:])

        hooks = [self.transformer.register_forward_pre_hook(join, with_kwargs=True), self.transformer.register_forward_hook(shorten)]
        try:
            yield
        finally:
            self._control = None
            for hook in hooks:
                hook.remove()
