"""Finds and loads the components of a Qwen-Image 2.1 pipeline, whose images have a fourth channel for opacity."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLQwenImage21, QwenImage21Transformer2DModel
from diffusers.models.attention_dispatch import attention_backend
from diffusers.models.transformers.transformer_qwenimage21 import QwenImage21AttnProcessor
from PIL import Image
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, Qwen2Tokenizer, Qwen3VLForConditionalGeneration, Qwen3VLModel
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from trainer_engine.config.options.model import ModelOptions
from trainer_engine.families.common.autoencoder import FrameAutoencoder
from trainer_engine.families.common.flow_samplers import SAMPLERS as SAMPLERS
from trainer_engine.families.common.flow_samplers import FlowPartFinder
from trainer_engine.families.common.pipeline_folder import CopiedPart
from trainer_engine.families.qwen_image_21.spec import SPEC
from trainer_engine.weights.loading import load_diffusers, load_text_encoder, load_tokenizer, part_in

OPAQUE = 255
"""Value of the fourth channel where an image hides what is behind it."""


class RgbaAutoencoder(FrameAutoencoder):
    """Takes every image as opaque, and decodes opacity with colours."""

    def _encoded(self, vae: Any, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, C, h, w)."""
        return super()._encoded(vae, torch.cat([pixels, torch.ones_like(pixels[:, :1])], dim=1))

    def _unscaled(self, vae: Any, latents: Tensor) -> Tensor:
        mean, deviation = self._statistics(vae, latents)
        return latents * deviation + mean

    def picture(self, latents: Tensor) -> Image.Image:
        """The image, without its fourth channel if nothing of it is transparent. Raises ImageNotFinite."""
        image = super().picture(latents)
        return image.convert("RGB") if image.mode == "RGBA" and image.getchannel("A").getextrema() == (OPAQUE, OPAQUE) else image


class ChosenAttention(QwenImage21AttnProcessor):  # type: ignore[misc]  # mypy does not read diffusers' types
    """Computes every part of the attention with the chosen backend; that of diffusers asks it only where nothing is masked."""

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        with attention_backend(self._attention_backend) if self._attention_backend else nullcontext():
            output: Tensor = super().__call__(*args, **kwargs)
        return output


class QwenImage21Components(FlowPartFinder):
    """The components of the pipeline. Its folder ``processor`` holds the tokenizer."""

    def __init__(self, options: ModelOptions) -> None:
        super().__init__(options, SPEC)

    def load_transformer(self, dtype: torch.dtype, folder: Path | None = None) -> QwenImage21Transformer2DModel:
        """From the base model, or from a folder that holds ``config.json`` and weights."""
        network = load_diffusers(QwenImage21Transformer2DModel, part_in(folder) if folder else self.find("transformer"), dtype)
        assert isinstance(network, QwenImage21Transformer2DModel)
        network.set_attn_processor(ChosenAttention())
        return network

    def load_rgba_vae(self, dtype: torch.dtype | None) -> AutoencoderKLQwenImage21:
        """``dtype`` None keeps the type of the weights."""
        vae = load_diffusers(AutoencoderKLQwenImage21, self.find("vae"), dtype)
        assert isinstance(vae, AutoencoderKLQwenImage21)
        return vae

    def load_whole_text_encoder(self, dtype: torch.dtype) -> Qwen3VLForConditionalGeneration:
        encoder = load_text_encoder(Qwen3VLForConditionalGeneration, self.find("text_encoder"), dtype)
        assert isinstance(encoder, Qwen3VLForConditionalGeneration)
        return encoder

    def load_language_model(self, dtype: torch.dtype) -> Qwen3VLModel:
        """The text encoder without its head and without its last norm: the network reads the states before it."""
        model: Qwen3VLModel = self.load_whole_text_encoder(dtype).model
        model.language_model.norm = nn.Identity()
        return model

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        tokenizer: PreTrainedTokenizerBase = load_tokenizer(Qwen2Tokenizer, self.find("processor"))
        return tokenizer

    def load_image_processor(self) -> Qwen2VLImageProcessorPil:
        """What makes patches of the images that the text encoder looks at."""
        processor: Qwen2VLImageProcessorPil = load_tokenizer(Qwen2VLImageProcessorPil, self.find("processor"))
        return processor

    def copied(self) -> dict[str, CopiedPart]:
        """What the result of a full fine-tune has as the base model has it."""
        find, encoder = self.find, lambda: self.load_whole_text_encoder(torch.bfloat16)
        kind = Qwen3VLForConditionalGeneration.__name__
        return {
            "vae": CopiedPart("diffusers", "AutoencoderKLQwenImage21", find("vae"), lambda: self.load_rgba_vae(None)),
            "text_encoder": CopiedPart("transformers", kind, find("text_encoder"), encoder, is_text=True),
            "processor": CopiedPart("transformers", "Qwen3VLProcessor", find("processor"), self.load_tokenizer, is_text=True),
        }
