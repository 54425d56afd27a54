"""Stable Diffusion XL as the trainer sees it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from diffusers import SchedulerMixin, StableDiffusionXLPipeline
from torch import Tensor, nn
from transformers import CLIPTokenizer

from trainer_engine.config.families import tokenizer_of
from trainer_engine.families.common.clip_text import ClipEncoder, ClipOutput, ClipStates
from trainer_engine.families.common.pipeline_folder import CopiedPart
from trainer_engine.families.common.unet import UNetFamily
from trainer_engine.families.inputs import Conditions, PromptBatch, SampleFacts, StepInputs
from trainer_engine.families.sdxl.components import SdxlComponents
from trainer_engine.families.sdxl.spec import SPEC


class StableDiffusionXL(UNetFamily):
    """Podell et al., 2023, "SDXL: Improving Latent Diffusion Models for High-Resolution Image Synthesis".

    A prompt is ``{"embeds": (77, D1 + D2), "pooled": (P,)}``: the penultimate states of both encoders side by side, and the projected
    pooled prompt of the second. The network also embeds six numbers of each image, ``time_ids``: height and width of the file, top and left
    of the crop, height and width of what is trained, in pixels.
    """

    spec = SPEC
    parts: SdxlComponents

    def make_components(self) -> SdxlComponents:
        return SdxlComponents(self.options.model, self.spec)

    # ---- prompts ----

    @property
    def clip_outputs(self) -> Mapping[str, ClipOutput]:
        skip = self.options.model.clip_skip
        return {
            "text_encoder": ClipOutput(skip, penultimate=True),
            "text_encoder_2": ClipOutput(skip, penultimate=True, pooled=True),
        }

    def load_encoder(self, name: str, dtype: torch.dtype) -> ClipEncoder:
        return self.parts.load_clip(dtype) if name == "text_encoder" else self.parts.load_open_clip(dtype)

    def load_tokenizer_of(self, name: str) -> CLIPTokenizer:
        return self.parts.load_tokenizer(tokenizer_of(name))

    def join_states(self, states: Mapping[str, ClipStates]) -> PromptBatch:
        first, second = states["text_encoder"], states["text_encoder_2"]
        return {"embeds": torch.cat([first.states, second.states], dim=-1), "pooled": second.first}

    # ---- the network ----

    def conditions(self, samples: Sequence[SampleFacts], generators: Sequence[torch.Generator] | None = None) -> Conditions:
        """``time_ids`` (B, 6)."""
        return {"time_ids": torch.tensor([time_ids(sample) for sample in samples], dtype=torch.float32)}

    def added_conditions(self, inputs: StepInputs, device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
        """``text_embeds`` (B, P) and ``time_ids`` (B, 6)."""
        return {
            "text_embeds": inputs.prompts["pooled"].to(device, dtype),
            "time_ids": inputs.conditions["time_ids"].to(device, dtype),
        }

    # ---- validation images and the result ----

    @property
    def pipeline_name(self) -> str:
        return "StableDiffusionXLPipeline"

    def bare_pipeline(self, unet: nn.Module, scheduler: SchedulerMixin, encoders: Mapping[str, nn.Module]) -> StableDiffusionXLPipeline:
        return StableDiffusionXLPipeline(
            vae=self.vae(),
            text_encoder=encoders.get("text_encoder"),
            text_encoder_2=encoders.get("text_encoder_2"),
            tokenizer=None,
            tokenizer_2=None,
            unet=unet,
            scheduler=scheduler,
            add_watermarker=False,
        )

    def pipeline_prompts(self, batch: PromptBatch) -> dict[str, Tensor]:
        embeds, pooled = batch["embeds"], batch["pooled"]
        return {
            "prompt_embeds": embeds[:1],
            "negative_prompt_embeds": embeds[1:],
            "pooled_prompt_embeds": pooled[:1],
            "negative_pooled_prompt_embeds": pooled[1:],
        }

    def text_parts(self) -> Mapping[str, CopiedPart]:
        def save_clip(folder: Path) -> None:
            self.parts.load_clip(None).save_pretrained(folder)

        def save_open_clip(folder: Path) -> None:
            self.parts.load_open_clip(None).save_pretrained(folder)

        def save_tokenizer(folder: Path) -> None:
            self.parts.load_tokenizer(folder.name).save_pretrained(folder)

        find = self.parts.find
        encoder, projecting = "CLIPTextModel", "CLIPTextModelWithProjection"
        return {
            "text_encoder": CopiedPart("transformers", encoder, find("text_encoder"), save_clip, is_text=True),
            "text_encoder_2": CopiedPart("transformers", projecting, find("text_encoder_2"), save_open_clip, is_text=True),
            "tokenizer": CopiedPart("transformers", "CLIPTokenizer", find("tokenizer"), save_tokenizer, is_text=True),
            "tokenizer_2": CopiedPart("transformers", "CLIPTokenizer", find("tokenizer_2"), save_tokenizer, is_text=True),
        }


def time_ids(sample: SampleFacts) -> list[float]:
    """Height and width of the file, top and left of the crop, height and width of what is trained (Podell et al., section 2.2)."""
    (width, height), (left, top), (target_width, target_height) = sample.original_size, sample.crop_corner, sample.target_size
    return [float(value) for value in (height, width, top, left, target_height, target_width)]


FAMILY = StableDiffusionXL
