"""Stable Diffusion 1 and 2 (Rombach et al., 2022): one UNet, one CLIP text encoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import diffusers
import torch
from diffusers import SchedulerMixin
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from trainer_engine.families.common.clip_text import ClipOutput, ClipStates
from trainer_engine.families.common.pipeline_folder import CopiedPart
from trainer_engine.families.common.unet import ClipUNetFamily, UNetComponents
from trainer_engine.families.inputs import PromptBatch
from trainer_engine.weights.loading import load_text_encoder, load_tokenizer


class StableDiffusionComponents(UNetComponents):
    """The text encoder and the tokenizer, too."""

    def load_text_encoder(self, dtype: torch.dtype | None) -> CLIPTextModel:
        encoder = load_text_encoder(CLIPTextModel, self.find("text_encoder"), dtype)
        assert isinstance(encoder, CLIPTextModel)
        return encoder

    def load_tokenizer(self) -> CLIPTokenizer:
        tokenizer: CLIPTokenizer = load_tokenizer(CLIPTokenizer, self.find("tokenizer"))
        return tokenizer


class StableDiffusion(ClipUNetFamily):
    """A prompt is ``{"embeds": (77, D)}``: CLIP's states with its padding, which the network attends to."""

    parts: StableDiffusionComponents

    def make_components(self) -> StableDiffusionComponents:
        return StableDiffusionComponents(self.options.model, self.spec)

    @property
    def clip_outputs(self) -> Mapping[str, ClipOutput]:
        return {"text_encoder": ClipOutput(self.options.model.clip_skip)}

    def load_encoder(self, name: str, dtype: torch.dtype) -> CLIPTextModel:
        return self.parts.load_text_encoder(dtype)

    def load_tokenizer_of(self, name: str) -> CLIPTokenizer:
        return self.parts.load_tokenizer()

    def join_states(self, states: Mapping[str, ClipStates]) -> PromptBatch:
        return {"embeds": states["text_encoder"].states}

    @property
    def pipeline_name(self) -> str:
        return self.spec.steers.pipeline if self.spec.steers else "StableDiffusionPipeline"

    def bare_pipeline(self, unet: nn.Module, scheduler: SchedulerMixin, trained: Mapping[str, nn.Module]) -> Any:
        pipeline = getattr(diffusers, self.pipeline_name)
        return pipeline(
            **{"text_encoder": None, **trained},
            vae=self.vae(),
            tokenizer=None,
            unet=unet,
            scheduler=scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )

    def pipeline_prompts(self, batch: PromptBatch) -> dict[str, Tensor]:
        return {"prompt_embeds": batch["embeds"][:1], "negative_prompt_embeds": batch["embeds"][1:]}

    def text_parts(self) -> Mapping[str, CopiedPart]:
        find, encoder = self.parts.find, lambda: self.parts.load_text_encoder(None)
        return {
            "text_encoder": CopiedPart("transformers", "CLIPTextModel", find("text_encoder"), encoder, is_text=True),
            "tokenizer": CopiedPart("transformers", "CLIPTokenizer", find("tokenizer"), self.parts.load_tokenizer, is_text=True),
        }
