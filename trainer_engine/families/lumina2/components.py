"""Finds and loads the components of a Lumina-Image 2.0 pipeline."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import Lumina2Transformer2DModel
from transformers import Gemma2Model, GemmaTokenizer, PreTrainedTokenizerBase

from trainer_engine.config.options.model import ModelOptions
from trainer_engine.families.common.flow_samplers import SAMPLERS as SAMPLERS
from trainer_engine.families.common.flow_samplers import FlowPartFinder
from trainer_engine.families.common.pipeline_folder import CopiedPart
from trainer_engine.families.lumina2.spec import SPEC
from trainer_engine.weights.loading import load_diffusers, load_text_encoder, load_tokenizer, part_in


class Lumina2Components(FlowPartFinder):
    """The components of the pipeline."""

    def __init__(self, options: ModelOptions) -> None:
        super().__init__(options, SPEC)

    def load_transformer(self, dtype: torch.dtype, folder: Path | None = None) -> Lumina2Transformer2DModel:
        """From the base model, or from a folder that holds ``config.json`` and weights."""
        network = load_diffusers(Lumina2Transformer2DModel, part_in(folder) if folder else self.find("transformer"), dtype)
        assert isinstance(network, Lumina2Transformer2DModel)
        return network

    def load_text_encoder(self, dtype: torch.dtype) -> Gemma2Model:
        encoder = load_text_encoder(Gemma2Model, self.find("text_encoder"), dtype)
        assert isinstance(encoder, Gemma2Model)
        return encoder

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        tokenizer: PreTrainedTokenizerBase = load_tokenizer(GemmaTokenizer, self.find("tokenizer"))
        return tokenizer

    def copied(self) -> dict[str, CopiedPart]:
        """What the result of a full fine-tune has as the base model has it."""
        find, encoder = self.find, lambda: self.load_text_encoder(torch.bfloat16)
        return {
            "vae": CopiedPart("diffusers", "AutoencoderKL", find("vae"), lambda: self.load_vae(None)),
            "text_encoder": CopiedPart("transformers", "Gemma2Model", find("text_encoder"), encoder, is_text=True),
            "tokenizer": CopiedPart("transformers", "GemmaTokenizerFast", find("tokenizer"), self.load_tokenizer, is_text=True),
        }
