"""Finds and loads the components of a Qwen-Image pipeline."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import QwenImageTransformer2DModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from trainer_engine.config.options.model import ModelOptions
from trainer_engine.families.common.flow_samplers import SAMPLERS as SAMPLERS
from trainer_engine.families.common.flow_samplers import FlowPartFinder
from trainer_engine.families.common.pipeline_folder import CopiedPart
from trainer_engine.families.qwen_image.spec import CLEAN_REFERENCES, SPEC
from trainer_engine.weights.loading import load_diffusers, load_text_encoder, load_tokenizer, part_in


class QwenImageComponents(FlowPartFinder):
    """The components of the pipeline."""

    def __init__(self, options: ModelOptions) -> None:
        super().__init__(options, SPEC)

    def load_transformer(self, dtype: torch.dtype, folder: Path | None = None) -> QwenImageTransformer2DModel:
        """From the base model, or from a folder that holds ``config.json`` and weights."""
        network = load_diffusers(QwenImageTransformer2DModel, part_in(folder) if folder else self.find("transformer"), dtype)
        assert isinstance(network, QwenImageTransformer2DModel)
        if self.options.model_flavour in CLEAN_REFERENCES and not network.config.zero_cond_t:
            network.register_to_config(zero_cond_t=True)  # it changes no weight
            for module in (network, *network.transformer_blocks):
                module.zero_cond_t = True
        return network

    def load_whole_text_encoder(self, dtype: torch.dtype) -> Qwen2_5_VLForConditionalGeneration:
        encoder = load_text_encoder(Qwen2_5_VLForConditionalGeneration, self.find("text_encoder"), dtype)
        assert isinstance(encoder, Qwen2_5_VLForConditionalGeneration)
        return encoder

    @property
    def edits(self) -> bool:
        """Whether the flavour looks at references."""
        return (self.options.model_flavour or SPEC.default_flavour) in SPEC.takes_references

    def load_language_model(self, dtype: torch.dtype) -> PreTrainedModel:
        """The text encoder without its head, and without its part for images if there are none to look at."""
        whole = self.load_whole_text_encoder(dtype).model
        model: PreTrainedModel = whole if self.edits else whole.language_model
        return model

    def load_image_processor(self) -> Qwen2VLImageProcessorPil:
        """What makes patches of the images that the text encoder looks at."""
        processor: Qwen2VLImageProcessorPil = load_tokenizer(Qwen2VLImageProcessorPil, self.find("processor"))
        return processor

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        tokenizer: PreTrainedTokenizerBase = load_tokenizer(Qwen2Tokenizer, self.find("tokenizer"))
        return tokenizer

    def copied(self) -> dict[str, CopiedPart]:
        """What the result of a full fine-tune has as the base model has it."""
        find, encoder = self.find, lambda: self.load_whole_text_encoder(torch.bfloat16)
        kind = Qwen2_5_VLForConditionalGeneration.__name__
        parts = {
            "vae": CopiedPart("diffusers", "AutoencoderKLQwenImage", find("vae"), lambda: self.load_frame_vae(None)),
            "text_encoder": CopiedPart("transformers", kind, find("text_encoder"), encoder, is_text=True),
            "tokenizer": CopiedPart("transformers", "Qwen2Tokenizer", find("tokenizer"), self.load_tokenizer, is_text=True),
        }
        if self.edits:
            name, load = "Qwen2VLProcessor", self.load_image_processor
            parts["processor"] = CopiedPart("transformers", name, find("processor"), load, is_text=True)
        return parts
