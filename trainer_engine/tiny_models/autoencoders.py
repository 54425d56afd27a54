"""Autoencoders with hand-made weights, in the layers of the real ones.

The latents of ``build_vae`` are the mean colour and brightness of each 8 x 8 block; its decoder interpolates them. The residual blocks
and the attention add nothing, because their last layer is zero. What is left are convolutions that average or interpolate, and one
normalisation and one SiLU at either end. These are made linear:

* a value v travels as the pair (v, -v), since silu(v) - silu(-v) = v;
* two channels hold the constants K and -K. With K far above every v, the standard deviation over all channels is K sqrt(2 / n)
  but for (v / K)^2, and the mean is 0; the normalisation's weight K sqrt(2 / n) undoes the division.
"""

from __future__ import annotations

import math

import torch
from diffusers import AutoencoderKL, AutoencoderKLFlux2, AutoencoderTiny
from torch import Tensor, nn

PREVIEW_CHANNELS = 4
UPSAMPLINGS = 3
USED_LATENTS = 4
"""Three colours and the brightness; further latents are a fraction of the brightness, so that none is constant."""
FADED = 0.5
CONSTANT = 100.0
BRIGHTNESS = (0.299, 0.587, 0.114)
SCALING_FACTOR = 2.0
"""Block means of photographs have a standard deviation of about one half."""


def build_vae(latents: int = USED_LATENTS, *, shift: float | None = None, quant_convs: bool = True) -> AutoencoderKL:
    """An autoencoder with a downsampling factor of 8 and 4 or more latent channels. It is deterministic."""
    channels = 2 * latents + 2 + (-2 * latents - 2) % 8
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(channels,) * 4,
        layers_per_block=1,
        latent_channels=latents,
        norm_num_groups=1,
        sample_size=256,
        scaling_factor=SCALING_FACTOR,
        shift_factor=shift,
        use_quant_conv=quant_convs,
        use_post_quant_conv=quant_convs,
        force_upcast=False,
    )
    with torch.no_grad():
        for name, module in vae.named_modules():
            _set_neutral(name, module)
        _set_encoder(vae)
        _set_decoder(vae)
    return vae.eval()


def _set_neutral(name: str, module: nn.Module) -> None:
    """Make residual branches zero, let resampling average or interpolate, and let the quant convolutions pass everything on."""
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        nn.init.zeros_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    if name.endswith("downsamplers.0.conv"):
        _each_channel(module.get_parameter("weight"), torch.tensor([[0.25, 0.25, 0.0], [0.25, 0.25, 0.0], [0.0, 0.0, 0.0]]))
    elif name.endswith("upsamplers.0.conv"):
        _each_channel(module.get_parameter("weight"), torch.tensor([[1.0, 2.0, 1.0], [2.0, 4.0, 2.0], [1.0, 2.0, 1.0]]) / 16)
    elif name.endswith("quant_conv"):
        _each_channel(module.get_parameter("weight"), torch.ones(1, 1))
    elif name.endswith("conv_norm_out"):
        weight = module.get_parameter("weight")
        weight.fill_(CONSTANT * math.sqrt(2 / weight.numel()))


def _each_channel(weight: Tensor, kernel: Tensor) -> None:
    for channel in range(weight.shape[0]):
        weight[channel, channel] = kernel


def _set_encoder(vae: AutoencoderKL) -> None:
    first, last = vae.encoder.conv_in, vae.encoder.conv_out
    brightness = torch.tensor([BRIGHTNESS])
    latents = vae.config.latent_channels
    faded = FADED * brightness.repeat(latents - USED_LATENTS, 1)
    _split_into_pairs(first, torch.cat([torch.eye(3), brightness, faded]))
    for latent in range(latents):
        _join_pair(last, latent, latent)
        last.bias[latents + latent] = -30.0  # log of the variance: none


def _set_decoder(vae: AutoencoderKL) -> None:
    _split_into_pairs(vae.decoder.conv_in, torch.eye(vae.config.latent_channels))
    for colour in range(3):
        _join_pair(vae.decoder.conv_out, colour, colour)


def _split_into_pairs(conv: nn.Conv2d, mixture: Tensor) -> None:
    """Channel 2 i is row i of ``mixture`` times the input, channel 2 i + 1 its negative; then the two constants."""
    middle = conv.weight.shape[-1] // 2
    for row, weights in enumerate(mixture):
        conv.weight[2 * row, :, middle, middle] = weights
        conv.weight[2 * row + 1, :, middle, middle] = -weights
    bias = conv.get_parameter("bias")
    bias[2 * len(mixture)], bias[2 * len(mixture) + 1] = CONSTANT, -CONSTANT


def _join_pair(conv: nn.Conv2d, output: int, pair: int) -> None:
    middle = conv.weight.shape[-1] // 2
    conv.weight[output, 2 * pair, middle, middle], conv.weight[output, 2 * pair + 1, middle, middle] = 1.0, -1.0


def build_preview_decoder(latents: int = 4, *, shift: float | None = None) -> AutoencoderTiny:
    """A Tiny AutoEncoder whose decoder shows the latents of ``build_vae``: the colour of each 8 x 8 block, without interpolation."""
    blocks = (PREVIEW_CHANNELS,) * (UPSAMPLINGS + 1)
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
        convolutions = [layer for layer in model.decoder.layers if isinstance(layer, nn.Conv2d)]
        first, *others = convolutions
        for colour in range(3):
            # The decoder of diffusers maps [0, 1] to [-1, 1] itself, and every layer clips values below 0.
            first.weight[colour, colour, 1, 1] = 0.5 / SCALING_FACTOR
            first.get_parameter("bias")[colour] = 0.5 + 0.5 * (shift or 0.0)
            for convolution in others:
                convolution.weight[colour, colour, 1, 1] = 1.0
    return model.eval()


def build_shuffled_vae() -> AutoencoderKLFlux2:
    """The autoencoder of Flux.2 with random weights and statistics of latents that are not 0 and 1."""
    vae = AutoencoderKLFlux2(block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=2)
    vae.bn.running_mean.normal_(std=0.1)
    vae.bn.running_var.uniform_(0.5, 2.0)
    return vae.eval()
