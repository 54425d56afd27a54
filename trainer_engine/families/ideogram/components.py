"""Finds and loads the components of an Ideogram 4 pipeline, whose weights are published in 8 and 4 bits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import Ideogram4Transformer2DModel
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Qwen2Tokenizer, Qwen3VLConfig, Qwen3VLModel

from trainer_engine.config.options.model import ModelOptions
from trainer_engine.families.common.flow_samplers import SAMPLERS as ALL_SAMPLERS
from trainer_engine.families.common.flow_samplers import FlowPartFinder
from trainer_engine.families.common.pipeline_folder import CopiedPart
from trainer_engine.families.ideogram.network import ShortStates
from trainer_engine.families.ideogram.spec import SPEC, UNCONDITIONAL
from trainer_engine.weights.hub import Part
from trainer_engine.weights.loading import load_diffusers, load_text_encoder, load_tokenizer, part_in
from trainer_engine.weights.published_quantised import in_thirds, is_quantised_part, load_dequantised

SAMPLERS = {name: ALL_SAMPLERS[name] for name in SPEC.sampling.samplers}
JOINT_ATTENTION = r"(layers\.\d+\.attention)\.qkv\.(weight)"
"""Queries, keys and values as one layer, as the published code has them; earlier files of the publisher do."""


class IdeogramComponents(FlowPartFinder):
    """The components of the pipeline."""

    def __init__(self, options: ModelOptions) -> None:
        super().__init__(options, SPEC)

    def load_transformer(self, dtype: torch.dtype, folder: Path | None = None) -> Ideogram4Transformer2DModel:
        """From the base model, dequantised, or from a folder that holds ``config.json`` and weights."""
        return self._network(part_in(folder) if folder else self.find("transformer"), dtype)

    def load_unconditional(self, dtype: torch.dtype) -> Ideogram4Transformer2DModel:
        """The network without prompts. Raises ModelUnavailable."""
        return self._network(self.find(UNCONDITIONAL), dtype)

    def _network(self, part: Part, dtype: torch.dtype) -> Ideogram4Transformer2DModel:
        if torch.get_default_device().type != "meta" and is_quantised_part(part):
            network = load_dequantised(_network_of, part, dtype, _in_diffusers_names)
        else:
            network = load_diffusers(ShortStates, part, dtype)
        assert isinstance(network, Ideogram4Transformer2DModel)
        return network

    def load_whole_text_encoder(self, dtype: torch.dtype) -> Qwen3VLModel:
        part = self.find("text_encoder")
        if is_quantised_part(part):
            encoder = load_dequantised(_encoder_of, part, dtype, _in_transformers_names).requires_grad_(False)
        else:
            encoder = load_text_encoder(Qwen3VLModel, part, dtype)
        assert isinstance(encoder, Qwen3VLModel)
        return encoder

    def load_language_model(self, dtype: torch.dtype) -> PreTrainedModel:
        """The text encoder without its part for images, and without the norm at its end, which the network does not see.

        Raises ModelUnavailable.
        """
        model: PreTrainedModel = self.load_whole_text_encoder(dtype).language_model
        model.norm = nn.Identity()
        return model

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        tokenizer: PreTrainedTokenizerBase = load_tokenizer(Qwen2Tokenizer, self.find("tokenizer"))
        return tokenizer

    def copied(self) -> dict[str, CopiedPart]:
        """What the result of a full fine-tune has as the base model has it; quantised weights are written in bfloat16."""
        network, encoder = Ideogram4Transformer2DModel.__name__, Qwen3VLModel.__name__
        unconditional, text = partial(self.load_unconditional, torch.bfloat16), partial(self.load_whole_text_encoder, torch.bfloat16)
        return {
            UNCONDITIONAL: self._copied("diffusers", network, UNCONDITIONAL, unconditional),
            "vae": self._copied("diffusers", "AutoencoderKLFlux2", "vae", partial(self.load_shuffled_vae, None)),
            "text_encoder": self._copied("transformers", encoder, "text_encoder", text, is_text=True),
            "tokenizer": self._copied("transformers", "Qwen2Tokenizer", "tokenizer", self.load_tokenizer, is_text=True),
        }

    def _copied(self, library: str, cls: str, name: str, load: Callable[[], Any], *, is_text: bool = False) -> CopiedPart:
        part = self.find(name)
        return CopiedPart(library, cls, part, load, is_text=is_text, is_readable=not is_quantised_part(part))


def _network_of(config: Mapping[str, Any]) -> nn.Module:
    network: nn.Module = ShortStates.from_config(dict(config))
    return network


def _encoder_of(config: Mapping[str, Any]) -> nn.Module:
    encoder: nn.Module = Qwen3VLModel(Qwen3VLConfig.from_dict(dict(config)))
    return encoder


def _in_diffusers_names(name: str, tensor: Tensor) -> Mapping[str, Tensor]:
    split = tuple(rf"\1.to_{part}.\2" for part in "qkv")
    found = in_thirds(name, tensor, whole=JOINT_ATTENTION, parts=split)
    return {one.replace(".attention.o.", ".attention.to_out.0."): values for one, values in found.items()}


def _in_transformers_names(name: str, tensor: Tensor) -> Mapping[str, Tensor]:
    """Those of the model without its head, which some files have behind a prefix."""
    return {name.removeprefix("model."): tensor}
