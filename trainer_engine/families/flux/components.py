"""Finding and loading the components of a Flux pipeline."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import FluxControlNetModel, FluxTransformer2DModel
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer, PreTrainedTokenizerBase, T5EncoderModel, T5Tokenizer

from trainer_engine.config.controlnet import CUSTOM
from trainer_engine.config.controlnet import NAME as CONTROLNET
from trainer_engine.config.encoder_fit import clip_skip_problem
from trainer_engine.config.options import TrainingOptions
from trainer_engine.contract.errors import InvalidOptions, Problem
from trainer_engine.families.common.controlnet import load_controlnet, new_controlnet
from trainer_engine.families.common.flow_samplers import SAMPLERS as SAMPLERS
from trainer_engine.families.common.flow_samplers import FlowPartFinder
from trainer_engine.families.common.pipeline_folder import CopiedPart
from trainer_engine.weights.loading import load_diffusers, load_text_encoder, load_tokenizer, part_in

DEFAULT_LAYERS: Mapping[str, int] = {"num_layers": 4, "num_single_layers": 10}
"""Blocks of a new ControlNet, as diffusers makes it."""


class FluxParts(FlowPartFinder):
    """Finds and loads the parts of a Flux pipeline."""

    def load_transformer(self, dtype: torch.dtype, folder: Path | None = None) -> FluxTransformer2DModel:
        """From the base model, or from a folder that holds ``config.json`` and weights."""
        network = load_diffusers(FluxTransformer2DModel, part_in(folder) if folder else self.find("transformer"), dtype)
        assert isinstance(network, FluxTransformer2DModel)
        return network

    def load_controlnet(self, options: TrainingOptions, dtype: torch.dtype, folder: Path | None = None) -> nn.Module:
        """From ``folder``, from its own weights, or made from the transformer. Raises ModelUnavailable, InvalidOptions."""
        if folder is None and self.spec.components[CONTROLNET].is_made:
            assert self.spec.steers is not None
            return new_controlnet(controlnet_of, self.load_transformer(dtype), self.spec.steers, options)
        return load_controlnet(FluxControlNetModel, part_in(folder) if folder else self.find(CONTROLNET), dtype)

    def load_clip(self, dtype: torch.dtype, skip: int = 0) -> CLIPTextModel:
        """Without its last ``skip`` layers. Raises InvalidOptions where it has no more than these."""
        encoder = load_text_encoder(CLIPTextModel, self.find("text_encoder"), dtype)
        assert isinstance(encoder, CLIPTextModel)
        layers = getattr(encoder, "text_model", encoder).encoder.layers
        problem = clip_skip_problem(skip, len(layers), penultimate=False)
        if problem:
            raise InvalidOptions([problem])
        del layers[len(layers) - skip :]
        return encoder

    def load_t5(self, dtype: torch.dtype) -> T5EncoderModel:
        encoder = load_text_encoder(T5EncoderModel, self.find("text_encoder_2"), dtype)
        assert isinstance(encoder, T5EncoderModel)
        return encoder

    def load_tokenizers(self) -> tuple[PreTrainedTokenizerBase, PreTrainedTokenizerBase]:
        """CLIP's and T5's."""
        return load_tokenizer(CLIPTokenizer, self.find("tokenizer")), load_tokenizer(T5Tokenizer, self.find("tokenizer_2"))

    def copied(self) -> dict[str, CopiedPart]:
        """What the result of a full fine-tune has as the base model has it."""

        def text(name: str, kind: str, load: Callable[[], Any]) -> CopiedPart:
            return CopiedPart("transformers", kind, self.find(name), load, is_text=True)

        return {
            "vae": CopiedPart("diffusers", "AutoencoderKL", self.find("vae"), lambda: self.load_vae(None)),
            "text_encoder": text("text_encoder", "CLIPTextModel", lambda: self.load_clip(torch.bfloat16)),
            "tokenizer": text("tokenizer", "CLIPTokenizer", lambda: self.load_tokenizers()[0]),
            "text_encoder_2": text("text_encoder_2", "T5EncoderModel", lambda: self.load_t5(torch.bfloat16)),
            "tokenizer_2": text("tokenizer_2", "T5TokenizerFast", lambda: self.load_tokenizers()[1]),
        }


def controlnet_of(network: FluxTransformer2DModel, **layers: int) -> FluxControlNetModel:
    """A ControlNet with the first blocks of a transformer: four and ten, or as ``layers`` says. Raises InvalidOptions if it has fewer."""
    there: dict[str, int] = {name: network.config[name] for name in DEFAULT_LAYERS}
    for name, number in layers.items():
        if number > there[name]:
            message = f"The transformer has {there[name]} such blocks."
            raise InvalidOptions([Problem.error(f"{CUSTOM}.{name}", "too_many", message, got=number, expected=f"at most {there[name]}")])
    chosen = {name: layers.get(name, min(usual, there[name])) for name, usual in DEFAULT_LAYERS.items()}
    heads = {name: network.config[name] for name in ("attention_head_dim", "num_attention_heads")}
    return FluxControlNetModel.from_transformer(network, **chosen, **heads)
