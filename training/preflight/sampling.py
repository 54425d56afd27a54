"""Estimates what lives in one pass of the network without gradients, as the sampler of a validation calls it."""

from __future__ import annotations

import math

from training.preflight.activations import BLOCK, modelled_width, token_px
from training.preflight.on_device import EstimatedRun
from training.preflight.unet_activations import is_unet
from training.preflight.weights import split_layers

LIVES = 12.7
"""Numbers that live at the largest moment of a block, as a multiple of its tokens and its width; times the family's share."""
UNET_LIVES = 25
"""The same of a UNet, as a multiple of its positions at full resolution and of its first width; its skip connections are among them."""


def sampling_numbers(run: EstimatedRun) -> int:
    """For the largest image or clip of a validation, with the prompt and the negative prompt in one batch."""
    validation, spec = run.options.validation, run.spec.beside or run.spec
    pixels = max((math.prod(size) for size in validation.resolutions), default=0) * spec.latent_frames(validation.frames)
    cells = pixels // spec.latents.scale_factor_px**2
    samples = 2 if validation.validation_guidance > 1 else 1
    layers, _ = split_layers(run.tensors or {}, run.spec)
    if is_unet(layers):
        return samples * cells * UNET_LIVES * layers.get("conv_in", (0,))[0]
    prompt = spec.tokens_of(run.options.model.model_flavour, run.options.model.tokenizer_max_length) * spec.prompts.joins_sequence
    blocks = (min(shape[:2]) for name, shape in layers.items() if BLOCK.search(f"{name}."))
    width = next(blocks, None) or modelled_width(run.parameters)
    return int(samples * (pixels // token_px(spec) ** 2 + prompt) * width * LIVES * spec.activation_share)
