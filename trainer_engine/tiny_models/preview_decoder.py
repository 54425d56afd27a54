"""A Tiny AutoEncoder whose decoder is worked out by hand for the latents of ``vae.py``: the colour of each block, without smoothing."""

from __future__ import annotations

import torch
from diffusers import AutoencoderTiny

from trainer_engine.tiny_models.vae import SCALING_FACTOR

CHANNELS = 4
UPSAMPLINGS = 3


def build_preview_decoder(latents: int = 4, *, shift: float | None = None) -> AutoencoderTiny:
    """Eight pixels a latent cell each way. The first three latents are colours in [-1, 1], shifted and scaled."""
    blocks = (CHANNELS,) * (UPSAMPLINGS + 1)
    model = AutoencoderTiny(
        latent_channels=latents,
        encoder_block_out_channels=blocks,
        decoder_block_out_channels=blocks,
        num_encoder_blocks=(1, 1, 1, 1),
        num_decoder_blocks=(1, 1, 1, 1),
        shift_factor=0.0,
        scaling_factor=1.0,
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        convolutions = [layer for layer in model.decoder.layers if isinstance(layer, torch.nn.Conv2d)]
        first, *others = convolutions
        for colour in range(3):
            # The decoder of diffusers makes [0, 1] into [-1, 1] itself, and every layer cuts off what is below 0.
            first.weight[colour, colour, 1, 1] = 0.5 / SCALING_FACTOR
            first.get_parameter("bias")[colour] = 0.5 + 0.5 * (shift or 0.0)
            for convolution in others:
                convolution.weight[colour, colour, 1, 1] = 1.0
    return model.eval()
