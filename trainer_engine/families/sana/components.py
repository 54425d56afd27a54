"""Finds and loads the components of a Sana pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderDC, SanaTransformer2DModel
from torch import Tensor
from transformers import Gemma2Model, GemmaTokenizer, PreTrainedTokenizerBase

from trainer_engine.config.options.model import ModelOptions
from trainer_engine.families.common.autoencoder import Autoencoder
from trainer_engine.families.common.flow_samplers import SAMPLERS as SAMPLERS
from trainer_engine.families.common.flow_samplers import FlowPartFinder
from trainer_engine.families.common.pipeline_folder import CopiedPart
from trainer_engine.families.sana.spec import SPEC
from trainer_engine.weights.loading import load_diffusers, load_text_encoder, load_tokenizer, part_in


class DeepAutoencoder(Autoencoder):
    """Latents have one cell for 32 x 32 pixels (Chen et al., 2024, "Deep Compression Autoencoder").

    They are what the encoder returns, times the scaling factor: there is no distribution that they are a sample of, and no shift.
    """

    def _encoded(self, vae: Any, pixels: Tensor) -> Tensor:
        latents: Tensor = vae.encode(pixels, return_dict=False)[0]
        return latents

    def _scaled(self, vae: Any, latents: Tensor) -> Tensor:
        scaled: Tensor = latents * vae.config.scaling_factor
        return scaled

    def _unscaled(self, vae: Any, latents: Tensor) -> Tensor:
        unscaled: Tensor = latents / vae.config.scaling_factor
        return unscaled


class SanaParts(FlowPartFinder):
    """The components of the pipeline."""

    def __init__(self, options: ModelOptions) -> None:
        super().__init__(options, SPEC)

    def load_transformer(self, dtype: torch.dtype, folder: Path | None = None) -> SanaTransformer2DModel:
        """From the base model, or from a folder that holds ``config.json`` and weights. Raises ModelUnavailable."""
        network = load_diffusers(SanaTransformer2DModel, part_in(folder) if folder else self.find("transformer"), dtype)
        assert isinstance(network, SanaTransformer2DModel)
        return network

    def load_deep_vae(self, dtype: torch.dtype | None) -> AutoencoderDC:
        """``dtype`` None keeps the type of the weights. Raises ModelUnavailable."""
        vae = load_diffusers(AutoencoderDC, self.find("vae"), dtype)
        assert isinstance(vae, AutoencoderDC)
        return vae

    def load_text_encoder(self, dtype: torch.dtype) -> Gemma2Model:
        """Frozen, on the CPU. Raises ModelUnavailable."""
        encoder = load_text_encoder(Gemma2Model, self.find("text_encoder"), dtype)
        assert isinstance(encoder, Gemma2Model)
        return encoder

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        """Raises ModelUnavailable. It pads on the right, as the pipeline asks for it, whatever its files say."""
        tokenizer: PreTrainedTokenizerBase = load_tokenizer(GemmaTokenizer, self.find("tokenizer"))
        tokenizer.padding_side = "right"
        return tokenizer

    def copied(self) -> dict[str, CopiedPart]:
        """What the result of a full fine-tune has as the base model has it."""
        find, encoder = self.find, lambda: self.load_text_encoder(torch.bfloat16)
        return {
            "vae": CopiedPart("diffusers", "AutoencoderDC", find("vae"), lambda: self.load_deep_vae(None)),
            "text_encoder": CopiedPart("transformers", "Gemma2Model", find("text_encoder"), encoder, is_text=True),
            "tokenizer": CopiedPart("transformers", "GemmaTokenizer", find("tokenizer"), self.load_tokenizer, is_text=True),
        }
