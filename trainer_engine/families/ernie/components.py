"""Finds and loads the components of an ERNIE-Image pipeline."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import ErnieImageTransformer2DModel
from transformers import AutoTokenizer, Mistral3Model, PreTrainedModel, PreTrainedTokenizerBase

from trainer_engine.config.options.model import ModelOptions
from trainer_engine.families.common.flow_samplers import SAMPLERS as SAMPLERS
from trainer_engine.families.common.flow_samplers import FlowPartFinder
from trainer_engine.families.common.pipeline_folder import CopiedPart
from trainer_engine.families.ernie.spec import SPEC
from trainer_engine.weights.loading import load_diffusers, load_text_encoder, load_tokenizer, part_in


class ErnieComponents(FlowPartFinder):
    """The components of the pipeline, without the model that rewrites prompts (``pe``), which no run needs."""

    def __init__(self, options: ModelOptions) -> None:
        super().__init__(options, SPEC)

    def load_transformer(self, dtype: torch.dtype, folder: Path | None = None) -> ErnieImageTransformer2DModel:
        """From the base model, or from a folder that holds ``config.json`` and weights."""
        network = load_diffusers(ErnieImageTransformer2DModel, part_in(folder) if folder else self.find("transformer"), dtype)
        assert isinstance(network, ErnieImageTransformer2DModel)
        return network

    def load_whole_text_encoder(self, dtype: torch.dtype) -> Mistral3Model:
        encoder = load_text_encoder(Mistral3Model, self.find("text_encoder"), dtype)
        assert isinstance(encoder, Mistral3Model)
        return encoder

    def load_language_model(self, dtype: torch.dtype) -> PreTrainedModel:
        """The text encoder without its part for images."""
        model: PreTrainedModel = self.load_whole_text_encoder(dtype).language_model
        return model

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        tokenizer: PreTrainedTokenizerBase = load_tokenizer(AutoTokenizer, self.find("tokenizer"))
        return tokenizer

    def copied(self) -> dict[str, CopiedPart]:
        """What the result of a full fine-tune has as the base model has it."""
        find, encoder, reader = self.find, lambda: self.load_whole_text_encoder(torch.bfloat16), type(self.load_tokenizer()).__name__
        return {
            "vae": CopiedPart("diffusers", "AutoencoderKLFlux2", find("vae"), lambda: self.load_shuffled_vae(None)),
            "text_encoder": CopiedPart("transformers", "Mistral3Model", find("text_encoder"), encoder, is_text=True),
            "tokenizer": CopiedPart("transformers", reader, find("tokenizer"), self.load_tokenizer, is_text=True),
        }
