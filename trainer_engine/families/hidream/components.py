"""Finds and loads the components of a HiDream-I1 pipeline."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from types import MappingProxyType

import torch
from diffusers import HiDreamImageTransformer2DModel
from transformers import (
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    T5EncoderModel,
    T5Tokenizer,
)

from trainer_engine.config.family_parts import tokenizer_of
from trainer_engine.config.options.model import ModelOptions
from trainer_engine.contract.errors import ModelUnavailable
from trainer_engine.families.common.flow_samplers import SAMPLERS as SAMPLERS
from trainer_engine.families.common.flow_samplers import FlowPartFinder
from trainer_engine.families.common.pipeline_folder import CopiedPart
from trainer_engine.families.hidream.spec import ENCODERS, SPEC, states_read
from trainer_engine.weights.loading import load_diffusers, load_text_encoder, load_tokenizer, part_in, read_network_config

CLIP_L, CLIP_G, T5, LLAMA = ENCODERS
CLASSES: Mapping[str, tuple[type[PreTrainedModel], type[PreTrainedTokenizerBase]]] = MappingProxyType(
    {
        **dict.fromkeys((CLIP_L, CLIP_G), (CLIPTextModelWithProjection, CLIPTokenizer)),
        T5: (T5EncoderModel, T5Tokenizer),
        LLAMA: (LlamaForCausalLM, PreTrainedTokenizerFast),
    }
)
"""Text encoder -> its class and that of its tokenizer."""


class HiDreamComponents(FlowPartFinder):
    """The components of the pipeline. Llama comes from a repository of its own if the base model, a repository, has none."""

    def __init__(self, options: ModelOptions) -> None:
        super().__init__(options, SPEC)

    @cached_property
    def llama_layers(self) -> tuple[int, ...]:
        """The states of Llama that the blocks of the network read, each once, beginning with 1 for those of its first layer.

        Raises ModelUnavailable.
        """
        part = self.find("transformer")
        layers = states_read(read_network_config(part))
        if not layers:
            message = f"config.json of the network in {part.source.name} lists no llama_layers."
            raise ModelUnavailable(message, hint=f"use the file of {SPEC.repository(self.options.model_flavour)}")
        return layers

    def load_transformer(self, dtype: torch.dtype, folder: Path | None = None) -> HiDreamImageTransformer2DModel:
        """From the base model, or from a folder that holds ``config.json`` and weights."""
        network = load_diffusers(HiDreamImageTransformer2DModel, part_in(folder) if folder else self.find("transformer"), dtype)
        assert isinstance(network, HiDreamImageTransformer2DModel)
        return network

    def load_encoder(self, name: str, dtype: torch.dtype) -> PreTrainedModel:
        """A text encoder, frozen, on the CPU. Raises ModelUnavailable."""
        encoder: PreTrainedModel = load_text_encoder(CLASSES[name][0], self.find(name), dtype)
        return encoder

    def load_tokenizer(self, name: str) -> PreTrainedTokenizerBase:
        """The tokenizer of a text encoder, with a token to pad with. Raises ModelUnavailable."""
        tokenizer: PreTrainedTokenizerBase = load_tokenizer(CLASSES[name][1], self.find(tokenizer_of(name)))
        if name == LLAMA:
            tokenizer.pad_token = tokenizer.eos_token  # as the pipeline does
        return tokenizer

    def copied(self) -> dict[str, CopiedPart]:
        """What the result of a full fine-tune has as the base model has it."""
        parts = {"vae": CopiedPart("diffusers", "AutoencoderKL", self.find("vae"), lambda: self.load_vae(None))}
        for name, (encoder, tokenizer) in CLASSES.items():
            parts |= self._text(encoder.__name__, name, lambda name=name: self.load_encoder(name, torch.bfloat16))  # type: ignore[misc]
            parts |= self._text(tokenizer.__name__, tokenizer_of(name), lambda name=name: self.load_tokenizer(name))  # type: ignore[misc]
        return parts

    def _text(self, kind: str, folder: str, load: Callable[[], PreTrainedModel | PreTrainedTokenizerBase]) -> dict[str, CopiedPart]:
        return {folder: CopiedPart("transformers", kind, self.find(folder), load, is_text=True)}
