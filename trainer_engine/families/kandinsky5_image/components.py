"""Finds and loads the components of a pipeline of Kandinsky 5 for images."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import Kandinsky5Transformer3DModel
from transformers import CLIPTextModel, CLIPTokenizer, PreTrainedModel, Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from trainer_engine.config.options.model import ModelOptions
from trainer_engine.families.common.flow_samplers import SAMPLERS as SAMPLERS
from trainer_engine.families.common.flow_samplers import FlowPartFinder
from trainer_engine.families.common.pipeline_folder import CopiedPart
from trainer_engine.families.kandinsky5_image.prompts import PlainProcessor
from trainer_engine.families.kandinsky5_image.spec import SPEC
from trainer_engine.families.modules import cast_weights
from trainer_engine.weights.loading import load_diffusers, load_text_encoder, load_tokenizer, part_in


class Kandinsky5Components(FlowPartFinder):
    """The components of the pipeline."""

    def __init__(self, options: ModelOptions) -> None:
        super().__init__(options, SPEC)

    def load_transformer(self, dtype: torch.dtype, folder: Path | None = None) -> Kandinsky5Transformer3DModel:
        """From the base model, or from a folder that holds ``config.json`` and weights.

        All weights have the same type: diffusers keeps those of modulations, a tenth of them, in float32, though autocast computes with
        them as with the others. The angles of positions stay float32.
        """
        network = load_diffusers(Kandinsky5Transformer3DModel, part_in(folder) if folder else self.find("transformer"), dtype)
        assert isinstance(network, Kandinsky5Transformer3DModel)
        cast_weights(network, dtype)
        return network

    def load_whole_text_encoder(self, dtype: torch.dtype) -> Qwen2_5_VLForConditionalGeneration:
        encoder = load_text_encoder(Qwen2_5_VLForConditionalGeneration, self.find("text_encoder"), dtype)
        assert isinstance(encoder, Qwen2_5_VLForConditionalGeneration)
        return encoder

    @property
    def edits(self) -> bool:
        """Whether the flavour sees a reference."""
        return SPEC.edits_in_place(self.options.model_flavour)

    def load_language_model(self, dtype: torch.dtype) -> PreTrainedModel:
        """Qwen2.5-VL without its head, and without its part for images if there are none to look at."""
        whole = self.load_whole_text_encoder(dtype).model
        model: PreTrainedModel = whole if self.edits else whole.language_model
        return model

    def load_clip(self, dtype: torch.dtype) -> CLIPTextModel:
        encoder = load_text_encoder(CLIPTextModel, self.find("text_encoder_2"), dtype)
        assert isinstance(encoder, CLIPTextModel)
        return encoder

    def load_processor(self) -> PlainProcessor:
        """What prepares prompts and references for Qwen2.5-VL. Without references, the settings for them are those of the class."""
        part = self.find("tokenizer")
        images = load_tokenizer(Qwen2VLImageProcessorPil, part) if self.edits else Qwen2VLImageProcessorPil()
        return PlainProcessor(images, load_tokenizer(Qwen2Tokenizer, part))

    def load_clip_tokenizer(self) -> CLIPTokenizer:
        tokenizer = load_tokenizer(CLIPTokenizer, self.find("tokenizer_2"))
        assert isinstance(tokenizer, CLIPTokenizer)
        return tokenizer

    def copied(self) -> dict[str, CopiedPart]:
        """What the result of a full fine-tune has as the base model has it."""
        find, kind = self.find, Qwen2_5_VLForConditionalGeneration.__name__
        whole, clip = (lambda: self.load_whole_text_encoder(torch.bfloat16)), (lambda: self.load_clip(torch.bfloat16))
        return {
            "vae": CopiedPart("diffusers", "AutoencoderKL", find("vae"), lambda: self.load_vae(None)),
            "text_encoder": CopiedPart("transformers", kind, find("text_encoder"), whole, is_text=True),
            "tokenizer": CopiedPart("transformers", "Qwen2VLProcessor", find("tokenizer"), self.load_processor, is_text=True),
            "text_encoder_2": CopiedPart("transformers", "CLIPTextModel", find("text_encoder_2"), clip, is_text=True),
            "tokenizer_2": CopiedPart("transformers", "CLIPTokenizer", find("tokenizer_2"), self.load_clip_tokenizer, is_text=True),
        }
