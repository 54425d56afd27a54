"""Prompts through CLIP's text encoders (Radford et al., 2021), as the pipelines of Stable Diffusion use them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from trainer_engine.contract.errors import InvalidOptions, Problem

ClipEncoder: TypeAlias = CLIPTextModel | CLIPTextModelWithProjection


@torch.no_grad()
def encode_clip(
    encoder: ClipEncoder, tokenizer: CLIPTokenizer, prompts: Sequence[str], *, skip: int, normalize: bool
) -> tuple[Tensor, Tensor]:
    """(hidden states (B, 77, D), output 0 of the encoder (B, ...)) on the CPU.

    Prompts are padded and cut to the tokenizer's length; the padding is part of what the network attends to. ``skip`` counts layers back
    from the last one. ``normalize`` applies the encoder's final layer norm to the states: Stable Diffusion 1 and 2 were trained with it,
    Stable Diffusion XL without. Output 0 is the projected pooled prompt of an encoder with projection.

    Raises InvalidOptions if the encoder has no such layer.
    """
    tokens = tokenizer(list(prompts), padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt")
    mask = tokens.attention_mask if getattr(encoder.config, "use_attention_mask", False) else None
    device = encoder.device
    output = encoder(tokens.input_ids.to(device), attention_mask=None if mask is None else mask.to(device), output_hidden_states=True)
    layers = output.hidden_states
    if skip + 1 >= len(layers):
        message = f"clip_skip={skip}, and the text encoder has {len(layers) - 1} layers."
        raise InvalidOptions([Problem.error("clip_skip", "too_many", message, got=skip, expected=f"at most {len(layers) - 2}")])
    states: Tensor = layers[-(skip + 1)]
    if normalize:
        inner: Any = getattr(encoder, "text_model", encoder)  # transformers 5 has merged the two
        states = inner.final_layer_norm(states)
    return states.cpu(), output[0].cpu()
