"""Finds and loads the components of a Krea 2 pipeline."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from diffusers import Krea2Transformer2DModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Qwen2Tokenizer, Qwen3VLModel

from trainer_engine.config.components import PIPELINE_INDEX, component_source, pipeline_settings
from trainer_engine.config.options.model import ModelOptions
from trainer_engine.contract.errors import ModelUnavailable
from trainer_engine.families.common.flow_samplers import SAMPLERS as SAMPLERS
from trainer_engine.families.common.flow_samplers import FlowPartFinder
from trainer_engine.families.common.pipeline_folder import CopiedPart
from trainer_engine.families.krea2.spec import SPEC, USUAL_LAYERS
from trainer_engine.weights.hub import Source, find_file, hub_cache
from trainer_engine.weights.loading import load_diffusers, load_text_encoder, load_tokenizer, part_in

LAYERS = "text_encoder_select_layers"


class Krea2Components(FlowPartFinder):
    """The components of the pipeline."""

    def __init__(self, options: ModelOptions) -> None:
        super().__init__(options, SPEC)

    @cached_property
    def settings(self) -> Mapping[str, Any]:
        """The arguments of the pipeline that are no components. Raises ModelUnavailable."""
        place = component_source(self.options, SPEC, "scheduler")
        source = Source(place.name, place.revision)
        if not source.is_local:
            find_file(source, PIPELINE_INDEX)
        stated = pipeline_settings(self.options, SPEC, hub_cache())
        layers = stated.get(LAYERS)
        if layers is not None and not (isinstance(layers, list) and layers and all(type(one) is int and one >= 0 for one in layers)):
            message = f"{PIPELINE_INDEX} of {place.name} states {LAYERS}={layers!r}, which are no numbers of layers."
            raise ModelUnavailable(message, hint=f"use the file of {SPEC.repository(self.options.model_flavour)}")
        is_turbo = (self.options.model_flavour or SPEC.default_flavour) == "turbo"
        return MappingProxyType(
            {
                LAYERS: USUAL_LAYERS if layers is None else tuple(layers),
                "is_distilled": bool(stated.get("is_distilled", is_turbo)),
            }
        )

    def text_layers(self) -> tuple[int, ...]:
        """The states of the text encoder that are stacked, beginning with its input. Raises ModelUnavailable."""
        layers: tuple[int, ...] = self.settings[LAYERS]
        return layers

    def load_transformer(self, dtype: torch.dtype, folder: Path | None = None) -> Krea2Transformer2DModel:
        """From the base model, or from a folder that holds ``config.json`` and weights."""
        network = load_diffusers(Krea2Transformer2DModel, part_in(folder) if folder else self.find("transformer"), dtype)
        assert isinstance(network, Krea2Transformer2DModel)
        return network

    def load_whole_text_encoder(self, dtype: torch.dtype) -> Qwen3VLModel:
        encoder = load_text_encoder(Qwen3VLModel, self.find("text_encoder"), dtype)
        assert isinstance(encoder, Qwen3VLModel)
        return encoder

    def load_language_model(self, dtype: torch.dtype) -> PreTrainedModel:
        """The text encoder without its part for images. Raises ModelUnavailable."""
        model: PreTrainedModel = self.load_whole_text_encoder(dtype).language_model
        return model

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        tokenizer: PreTrainedTokenizerBase = load_tokenizer(Qwen2Tokenizer, self.find("tokenizer"))
        return tokenizer

    def copied(self) -> dict[str, CopiedPart]:
        """What the result of a full fine-tune has as the base model has it."""
        find, encoder = self.find, lambda: self.load_whole_text_encoder(torch.bfloat16)
        return {
            "vae": CopiedPart("diffusers", "AutoencoderKLQwenImage", find("vae"), lambda: self.load_frame_vae(None)),
            "text_encoder": CopiedPart("transformers", "Qwen3VLModel", find("text_encoder"), encoder, is_text=True),
            "tokenizer": CopiedPart("transformers", "Qwen2Tokenizer", find("tokenizer"), self.load_tokenizer, is_text=True),
        }
