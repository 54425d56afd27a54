"""Finds and loads the components of a Stable Diffusion XL pipeline."""

from __future__ import annotations

import torch
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from trainer_engine.families.common.samplers import SAMPLERS
from trainer_engine.families.common.unet import UNetComponents
from trainer_engine.weights.loading import load_text_encoder, load_tokenizer

__all__ = ["SAMPLERS", "SdxlComponents"]


class SdxlComponents(UNetComponents):
    """Two text encoders and their tokenizers in addition to UNet and autoencoder."""

    def load_clip(self, dtype: torch.dtype | None) -> CLIPTextModel:
        encoder = load_text_encoder(CLIPTextModel, self.find("text_encoder"), dtype)
        assert isinstance(encoder, CLIPTextModel)
        return encoder

    def load_open_clip(self, dtype: torch.dtype | None) -> CLIPTextModelWithProjection:
        encoder = load_text_encoder(CLIPTextModelWithProjection, self.find("text_encoder_2"), dtype)
        assert isinstance(encoder, CLIPTextModelWithProjection)
        return encoder

    def load_tokenizer(self, name: str) -> CLIPTokenizer:
        """``name``: ``tokenizer`` or ``tokenizer_2``."""
        tokenizer: CLIPTokenizer = load_tokenizer(CLIPTokenizer, self.find(name))
        return tokenizer
