"""Finds and loads the components of a FLUX.3 pipeline."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from diffusers import Flux3Transformer2DModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Qwen2Tokenizer, Qwen3VLForConditionalGeneration

from trainer_engine.config.components import MODULAR_INDEX
from trainer_engine.config.options.model import ModelOptions
from trainer_engine.contract.files import is_file, read_small_json
from trainer_engine.families.common.flow_samplers import SAMPLERS as SAMPLERS
from trainer_engine.families.common.flow_samplers import FlowPartFinder
from trainer_engine.families.common.pipeline_folder import CopiedPart, has_processor
from trainer_engine.families.flux3.spec import SPEC, TEXT_LAYERS
from trainer_engine.families.flux3.windows import hide_padding
from trainer_engine.results.pipeline_index import names_a_repository
from trainer_engine.weights.loading import load_diffusers, load_text_encoder, load_tokenizer, part_in, read_network_config

REWRITING = ("prompt_upsampler", "prompt_upsampler_processor")
"""Components of the pipeline that rewrite prompts before they are read; runs take captions as they are."""


class Flux3Components(FlowPartFinder):
    """The components of the pipeline."""

    def __init__(self, options: ModelOptions) -> None:
        super().__init__(options, SPEC)

    @cached_property
    def is_flow_map(self) -> bool:
        """Whether the base weights were distilled to jump from one noise level to another, which the network is told then."""
        return bool(read_network_config(self.find("transformer")).get("flow_map"))

    def load_transformer(self, dtype: torch.dtype, folder: Path | None = None) -> Flux3Transformer2DModel:
        """From the base model, or from a folder that holds ``config.json`` and weights."""
        network = load_diffusers(Flux3Transformer2DModel, part_in(folder) if folder else self.find("transformer"), dtype)
        assert isinstance(network, Flux3Transformer2DModel)
        hide_padding(network)
        return network

    def load_whole_text_encoder(self, dtype: torch.dtype) -> Qwen3VLForConditionalGeneration:
        encoder = load_text_encoder(Qwen3VLForConditionalGeneration, self.find("text_encoder"), dtype)
        assert isinstance(encoder, Qwen3VLForConditionalGeneration)
        return encoder

    def load_language_model(self, dtype: torch.dtype) -> PreTrainedModel:
        """The text encoder without what makes no states: the layers behind the last one that is read, the head, the part for images.

        One more layer stays: the last states of all would be normalised.
        """
        model: PreTrainedModel = self.load_whole_text_encoder(dtype).model.language_model
        del model.layers[TEXT_LAYERS[-1] + 1 :]
        return model

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        tokenizer: PreTrainedTokenizerBase = load_tokenizer(Qwen2Tokenizer, self.find("tokenizer"))
        return tokenizer

    def components_elsewhere(self) -> dict[str, Any]:
        """Entries of the index of the base model for components that a run does not read and that lie in another repository.

        Empty if the index is not on this machine: runs do not download it.
        """
        path = self.find("text_encoder").folder.parent / MODULAR_INDEX
        index = read_small_json(path) if is_file(path) else {}
        entries = index.items() if isinstance(index, dict) else ()
        return {name: entry for name, entry in entries if name in REWRITING and names_a_repository(entry)}

    def copied(self) -> dict[str, CopiedPart]:
        """What the result of a full fine-tune has as the base model has it."""
        find, encoder = self.find, lambda: self.load_whole_text_encoder(torch.bfloat16)
        kind = Qwen3VLForConditionalGeneration.__name__
        reader = "Qwen3VLProcessor" if has_processor(find("tokenizer")) else "Qwen2Tokenizer"
        return {
            "vae": CopiedPart("diffusers", "AutoencoderKLFlux2", find("vae"), lambda: self.load_shuffled_vae(None)),
            "text_encoder": CopiedPart("transformers", kind, find("text_encoder"), encoder, is_text=True),
            "tokenizer": CopiedPart("transformers", reader, find("tokenizer"), self.load_tokenizer, is_text=True),
        }
