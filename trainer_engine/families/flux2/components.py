"""Finds and loads the components of a Flux.2 pipeline."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import Flux2Transformer2DModel
from transformers import (
    AutoTokenizer,
    Mistral3ForConditionalGeneration,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen2Tokenizer,
    Qwen3ForCausalLM,
    Qwen3Model,
)

from trainer_engine.config.options.model import ModelOptions
from trainer_engine.families.common.flow_samplers import SAMPLERS as SAMPLERS
from trainer_engine.families.common.flow_samplers import FlowPartFinder
from trainer_engine.families.common.pipeline_folder import CopiedPart, has_processor
from trainer_engine.families.flux2.spec import DEV_LAYERS, KLEIN_LAYERS, SPEC
from trainer_engine.weights.loading import load_diffusers, load_text_encoder, load_tokenizer, part_in


class Flux2Components(FlowPartFinder):
    """The components of the pipeline."""

    def __init__(self, options: ModelOptions) -> None:
        super().__init__(options, SPEC)

    @property
    def is_klein(self) -> bool:
        return (self.options.model_flavour or SPEC.default_flavour) != "dev"

    def load_transformer(self, dtype: torch.dtype, folder: Path | None = None) -> Flux2Transformer2DModel:
        """From the base model, or from a folder that holds ``config.json`` and weights."""
        network = load_diffusers(Flux2Transformer2DModel, part_in(folder) if folder else self.find("transformer"), dtype)
        assert isinstance(network, Flux2Transformer2DModel)
        return network

    def load_language_model(self, dtype: torch.dtype) -> PreTrainedModel:
        """The text encoder without what makes no states: the layers behind the last one that is read, the head, the part for images."""
        part = self.find("text_encoder")
        if self.is_klein:
            model, layers = load_text_encoder(Qwen3Model, part, dtype), KLEIN_LAYERS
        else:
            model, layers = load_text_encoder(Mistral3ForConditionalGeneration, part, dtype).model.language_model, DEV_LAYERS
        assert isinstance(model, PreTrainedModel)
        del model.layers[layers[-1] + 1 :]
        return model

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        tokenizer: PreTrainedTokenizerBase = load_tokenizer(Qwen2Tokenizer if self.is_klein else AutoTokenizer, self.find("tokenizer"))
        return tokenizer

    def copied(self) -> dict[str, CopiedPart]:
        """What the result of a full fine-tune has as the base model has it."""
        encoder = Qwen3ForCausalLM if self.is_klein else Mistral3ForConditionalGeneration
        parts = {name: self.find(name) for name in ("vae", "text_encoder", "tokenizer")}
        return {
            "vae": CopiedPart("diffusers", "AutoencoderKLFlux2", parts["vae"], lambda: self.load_shuffled_vae(None)),
            "text_encoder": CopiedPart(
                "transformers",
                encoder.__name__,
                parts["text_encoder"],
                lambda: load_text_encoder(encoder, parts["text_encoder"], torch.bfloat16),
                is_text=True,
            ),
            "tokenizer": CopiedPart(
                "transformers",
                "PixtralProcessor" if has_processor(parts["tokenizer"]) else type(self.load_tokenizer()).__name__,
                parts["tokenizer"],
                self.load_tokenizer,
                is_text=True,
            ),
        }
