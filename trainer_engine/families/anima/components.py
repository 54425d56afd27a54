"""Finds and loads the components of an Anima pipeline."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import torch
from diffusers import AnimaTextConditioner, CosmosTransformer3DModel
from transformers import PreTrainedTokenizerBase, Qwen2Tokenizer, Qwen3Model, T5Tokenizer

from trainer_engine.config.options.model import ModelOptions
from trainer_engine.families.anima.network import fit_for_images
from trainer_engine.families.anima.spec import CONDITIONER, SPEC, T5_TOKENIZER
from trainer_engine.families.common.flow_samplers import SAMPLERS as SAMPLERS
from trainer_engine.families.common.flow_samplers import FlowPartFinder
from trainer_engine.families.common.pipeline_folder import CopiedPart
from trainer_engine.weights.hub import loading
from trainer_engine.weights.loading import load_diffusers, load_text_encoder, load_tokenizer, part_in


class AnimaComponents(FlowPartFinder):
    """The components of the pipeline."""

    def __init__(self, options: ModelOptions) -> None:
        super().__init__(options, SPEC)

    def load_transformer(self, dtype: torch.dtype, folder: Path | None = None) -> CosmosTransformer3DModel:
        """From the base model, or from a folder that holds ``config.json`` and weights."""
        network = load_diffusers(CosmosTransformer3DModel, part_in(folder) if folder else self.find("transformer"), dtype)
        assert isinstance(network, CosmosTransformer3DModel)
        fit_for_images(network)
        return network

    def load_text_encoder(self, dtype: torch.dtype) -> Qwen3Model:
        encoder = load_text_encoder(Qwen3Model, self.find("text_encoder"), dtype)
        assert isinstance(encoder, Qwen3Model)
        return encoder

    def load_conditioner(self, dtype: torch.dtype | None) -> AnimaTextConditioner:
        """Frozen. ``dtype`` None keeps the type of the weights."""
        conditioner = load_diffusers(AnimaTextConditioner, self.find(CONDITIONER), dtype)
        assert isinstance(conditioner, AnimaTextConditioner)
        conditioner.eval().requires_grad_(False)
        return conditioner

    @cached_property
    def prompt_tokens(self) -> int:
        """Tokens that every prompt has for the network: the conditioner fills shorter ones with zeros. Raises ModelUnavailable."""
        part = self.find(CONDITIONER)
        with loading(part):
            config = AnimaTextConditioner.load_config(part.folder, local_files_only=True)
            return int(config["min_sequence_length"])

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        tokenizer: PreTrainedTokenizerBase = load_tokenizer(Qwen2Tokenizer, self.find("tokenizer"))
        return tokenizer

    def load_t5_tokenizer(self) -> PreTrainedTokenizerBase:
        tokenizer: PreTrainedTokenizerBase = load_tokenizer(T5Tokenizer, self.find(T5_TOKENIZER))
        return tokenizer

    def copied(self) -> dict[str, CopiedPart]:
        """What the result of a full fine-tune has as the base model has it."""
        find, encoder = self.find, lambda: self.load_text_encoder(torch.bfloat16)
        return {
            "vae": CopiedPart("diffusers", "AutoencoderKLQwenImage", find("vae"), lambda: self.load_frame_vae(None)),
            CONDITIONER: CopiedPart("diffusers", "AnimaTextConditioner", find(CONDITIONER), lambda: self.load_conditioner(None)),
            "text_encoder": CopiedPart("transformers", "Qwen3Model", find("text_encoder"), encoder, is_text=True),
            "tokenizer": CopiedPart("transformers", "Qwen2Tokenizer", find("tokenizer"), self.load_tokenizer, is_text=True),
            T5_TOKENIZER: CopiedPart("transformers", "T5Tokenizer", find(T5_TOKENIZER), self.load_t5_tokenizer, is_text=True),
        }
