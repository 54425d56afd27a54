"""Finds and loads the components of a Stable Diffusion 3.5 pipeline."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import AutoencoderKL, SD3ControlNetModel, SD3Transformer2DModel
from torch import nn
from transformers import (
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    T5EncoderModel,
    T5Tokenizer,
)

from trainer_engine.config.controlnet import NAME as CONTROLNET
from trainer_engine.config.family_parts import tokenizer_of
from trainer_engine.config.family_spec import FamilySpec
from trainer_engine.config.options import TrainingOptions
from trainer_engine.config.options.model import ModelOptions
from trainer_engine.families.common.controlnet import load_controlnet, new_controlnet
from trainer_engine.families.common.flow_samplers import SAMPLERS as SAMPLERS
from trainer_engine.families.common.flow_samplers import FlowPartFinder
from trainer_engine.families.common.pipeline_folder import CopiedPart
from trainer_engine.families.sd3.controlnet import controlnet_of
from trainer_engine.families.sd3.spec import SPEC
from trainer_engine.weights.hub import Part
from trainer_engine.weights.loading import load_diffusers, load_text_encoder, load_tokenizer, part_in

T5 = "text_encoder_3"
CLIPS = ("text_encoder", "text_encoder_2")


class Sd3Components(FlowPartFinder):
    """The components of the pipeline. The base model may lack T5: its pipelines then give the network zeros."""

    def __init__(self, options: ModelOptions, spec: FamilySpec = SPEC) -> None:
        super().__init__(options, spec)

    @property
    def t5(self) -> Part | None:
        """T5, or None if the base model has none. Raises ModelUnavailable if its source cannot be reached."""
        return self.find_if_present(T5)

    def load_transformer(self, dtype: torch.dtype, folder: Path | None = None) -> SD3Transformer2DModel:
        """From the base model, or from a folder that holds ``config.json`` and weights."""
        network = load_diffusers(SD3Transformer2DModel, part_in(folder) if folder else self.find("transformer"), dtype)
        assert isinstance(network, SD3Transformer2DModel)
        return network

    def load_controlnet(self, options: TrainingOptions, dtype: torch.dtype, folder: Path | None = None) -> nn.Module:
        """From ``folder``, from its own weights, or made from the transformer. Raises ModelUnavailable, InvalidOptions."""
        if folder is None and self.spec.components[CONTROLNET].is_made:
            assert self.spec.steers is not None
            return new_controlnet(controlnet_of, self.load_transformer(dtype), self.spec.steers, options)
        return load_controlnet(SD3ControlNetModel, part_in(folder) if folder else self.find(CONTROLNET), dtype)

    def vae_shift(self) -> float:
        """What scaled latents would be more if the autoencoder shifted none."""
        config = AutoencoderKL.load_config(self.find("vae").folder, local_files_only=True)
        return float(config.get("shift_factor") or 0.0) * float(config.get("scaling_factor", 0.18215))

    def load_clip(self, name: str, dtype: torch.dtype) -> CLIPTextModelWithProjection:
        encoder = load_text_encoder(CLIPTextModelWithProjection, self.find(name), dtype)
        assert isinstance(encoder, CLIPTextModelWithProjection)
        return encoder

    def load_t5(self, part: Part, dtype: torch.dtype) -> T5EncoderModel:
        encoder = load_text_encoder(T5EncoderModel, part, dtype)
        assert isinstance(encoder, T5EncoderModel)
        return encoder

    def load_clip_tokenizer(self, name: str) -> CLIPTokenizer:
        """``name``: that of the text encoder."""
        tokenizer: CLIPTokenizer = load_tokenizer(CLIPTokenizer, self.find(tokenizer_of(name)))
        return tokenizer

    def load_t5_tokenizer(self) -> PreTrainedTokenizerBase:
        tokenizer: PreTrainedTokenizerBase = load_tokenizer(T5Tokenizer, self.find(tokenizer_of(T5)))
        return tokenizer

    def copied(self) -> dict[str, CopiedPart]:
        """What the result of a full fine-tune has as the base model has it."""

        def text(kind: str, name: str, part: Part, load: Callable[[], PreTrainedModel | PreTrainedTokenizerBase]) -> dict[str, CopiedPart]:
            return {name: CopiedPart("transformers", kind, part, load, is_text=True)}

        find = self.find
        parts = {"vae": CopiedPart("diffusers", "AutoencoderKL", find("vae"), lambda: self.load_vae(None))}
        for name in CLIPS:
            tokenizer = tokenizer_of(name)
            parts |= text(
                "CLIPTextModelWithProjection",
                name,
                find(name),
                lambda name=name: self.load_clip(name, torch.bfloat16),  # type: ignore[misc]
            )
            parts |= text("CLIPTokenizer", tokenizer, find(tokenizer), lambda name=name: self.load_clip_tokenizer(name))  # type: ignore[misc]
        if t5 := self.t5:
            parts |= text("T5EncoderModel", T5, t5, lambda: self.load_t5(t5, torch.bfloat16))
            parts |= text("T5TokenizerFast", tokenizer_of(T5), find(tokenizer_of(T5)), self.load_t5_tokenizer)
        return parts
