"""Finds and loads the components of a Wan pipeline."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from diffusers import AutoencoderKLWan, SchedulerMixin, WanTransformer3DModel
from transformers import CLIPVisionModel, PreTrainedTokenizerBase, T5Tokenizer, UMT5EncoderModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from trainer_engine.config.options.model import ModelOptions
from trainer_engine.families.common.pipeline_folder import CopiedPart
from trainer_engine.families.wan.spec import SPEC
from trainer_engine.weights.loading import PartFinder, load_diffusers, load_text_encoder, load_tokenizer, make_scheduler, part_in

FLOW = MappingProxyType({"prediction_type": "flow_prediction", "use_flow_sigmas": True})
SAMPLERS: Mapping[str, tuple[str, Mapping[str, Any]]] = MappingProxyType(
    {
        "euler": ("FlowMatchEulerDiscreteScheduler", {}),
        "unipc": ("UniPCMultistepScheduler", FLOW),
        "dpm++": ("DPMSolverMultistepScheduler", FLOW),
    }
)
"""``validation_noise_scheduler`` -> class of diffusers and its settings beside the shift of the schedule."""


class WanComponents(PartFinder):
    """The components of the pipeline."""

    def __init__(self, options: ModelOptions) -> None:
        super().__init__(options, SPEC)

    def load_transformer(self, dtype: torch.dtype, folder: Path | None = None) -> WanTransformer3DModel:
        """From the base model, or from a folder that holds ``config.json`` and weights."""
        network = load_diffusers(WanTransformer3DModel, part_in(folder) if folder else self.find("transformer"), dtype)
        assert isinstance(network, WanTransformer3DModel)
        return network

    def load_video_vae(self, dtype: torch.dtype | None) -> AutoencoderKLWan:
        """``dtype`` None keeps the type of the weights."""
        vae = load_diffusers(AutoencoderKLWan, self.find("vae"), dtype)
        assert isinstance(vae, AutoencoderKLWan)
        return vae

    def load_text_encoder(self, dtype: torch.dtype) -> UMT5EncoderModel:
        encoder = load_text_encoder(UMT5EncoderModel, self.find("text_encoder"), dtype)
        assert isinstance(encoder, UMT5EncoderModel)
        return encoder

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        tokenizer: PreTrainedTokenizerBase = load_tokenizer(T5Tokenizer, self.find("tokenizer"))
        return tokenizer

    def load_image_encoder(self, dtype: torch.dtype | None) -> CLIPVisionModel:
        """What looks at the first frame; only image-to-video models have it. ``dtype`` None keeps the type of the weights."""
        encoder = load_text_encoder(CLIPVisionModel, self.find("image_encoder"), dtype)
        assert isinstance(encoder, CLIPVisionModel)
        return encoder

    def load_image_processor(self) -> CLIPImageProcessorPil:
        """Prepares a frame for the image encoder."""
        processor = load_tokenizer(CLIPImageProcessorPil, self.find("image_processor"))
        assert isinstance(processor, CLIPImageProcessorPil)
        return processor

    def shift(self) -> float:
        """The shift of the base model's schedule."""
        config = self.scheduler_config()
        return float(config.get("flow_shift") or config.get("shift") or 1.0)

    def make_scheduler(self, sampler: str | None = None) -> SchedulerMixin:
        """The base model's own sampler, or the named one, on the base model's schedule."""
        config = self.scheduler_config()
        name, settings = SAMPLERS[sampler] if sampler else (str(config.get("_class_name")), {})
        shifted = {"flow_shift": self.shift(), "shift": self.shift()} if sampler else {}
        return make_scheduler(config, name, {**settings, **shifted}, self.base.name)

    def copied(self, *, animates: bool) -> dict[str, CopiedPart]:
        """What the result of a full fine-tune has as the base model has it. ``animates``: the model is given the first frame of a clip."""
        find, encoder = self.find, lambda: self.load_text_encoder(torch.bfloat16)
        frame = (
            {}
            if not animates
            else {
                "image_encoder": CopiedPart(
                    "transformers", "CLIPVisionModel", find("image_encoder"), lambda: self.load_image_encoder(None)
                ),
                "image_processor": CopiedPart("transformers", "CLIPImageProcessor", find("image_processor"), self.load_image_processor),
            }
        )
        return {
            **frame,
            "vae": CopiedPart("diffusers", "AutoencoderKLWan", find("vae"), lambda: self.load_video_vae(None)),
            "text_encoder": CopiedPart("transformers", "UMT5EncoderModel", find("text_encoder"), encoder, is_text=True),
            "tokenizer": CopiedPart("transformers", "T5Tokenizer", find("tokenizer"), self.load_tokenizer, is_text=True),
        }
