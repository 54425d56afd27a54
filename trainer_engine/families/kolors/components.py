"""Finds and loads the components of a Kolors pipeline."""

from __future__ import annotations

import torch
from diffusers.pipelines.kolors.text_encoder import ChatGLMModel
from diffusers.pipelines.kolors.tokenizer import ChatGLMTokenizer

from trainer_engine.families.common.pipeline_folder import CopiedPart
from trainer_engine.families.common.samplers import SAMPLERS
from trainer_engine.families.common.unet import UNetComponents
from trainer_engine.weights.loading import load_text_encoder, load_tokenizer

__all__ = ["SAMPLERS", "KolorsComponents"]

LIBRARY = "kolors"
"""The package of pipelines in diffusers that has the classes of the text encoder and its tokenizer, as ``model_index.json`` names it."""


class KolorsComponents(UNetComponents):
    """ChatGLM3 and its tokenizer in addition to UNet and autoencoder. Both are classes of diffusers, though their files name other code."""

    def load_text_encoder(self, dtype: torch.dtype | None) -> ChatGLMModel:
        encoder = load_text_encoder(ChatGLMModel, self.find("text_encoder"), dtype)
        assert isinstance(encoder, ChatGLMModel)
        return encoder

    def load_tokenizer(self) -> ChatGLMTokenizer:
        tokenizer: ChatGLMTokenizer = load_tokenizer(ChatGLMTokenizer, self.find("tokenizer"))
        return tokenizer

    def copied_text(self) -> dict[str, CopiedPart]:
        """What the result of a full fine-tune has as the base model has it."""
        find, encoder = self.find, lambda: self.load_text_encoder(None)
        return {
            "text_encoder": CopiedPart(LIBRARY, "ChatGLMModel", find("text_encoder"), encoder, is_text=True),
            "tokenizer": CopiedPart(LIBRARY, "ChatGLMTokenizer", find("tokenizer"), self.load_tokenizer, is_text=True),
        }
