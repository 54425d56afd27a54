"""Stable Diffusion XL as the trainer sees it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import diffusers
import torch
from diffusers import SchedulerMixin
from torch import Tensor, nn
from transformers import CLIPTokenizer

from trainer_engine.config.family_parts import tokenizer_of
from trainer_engine.config.options import TrainingOptions
from trainer_engine.config.options.model import ObjectiveOptions
from trainer_engine.families.common.clip_text import ClipEncoder, ClipOutput, ClipStates
from trainer_engine.families.common.pipeline_folder import CopiedPart
from trainer_engine.families.common.unet import UNetFamily
from trainer_engine.families.generation import GenerationRequest
from trainer_engine.families.inputs import Conditions, PromptBatch, SampleFacts, StepInputs
from trainer_engine.families.sdxl.components import SdxlComponents
from trainer_engine.families.sdxl.options import SdxlOptions
from trainer_engine.families.sdxl.spec import REFINERS, SPEC
from trainer_engine.runtime.devices import Devices


class StableDiffusionXL(UNetFamily):
    """Podell et al., 2023, "SDXL: Improving Latent Diffusion Models for High-Resolution Image Synthesis".

    A prompt is ``{"embeds": (77, D1 + D2), "pooled": (P,)}``: the penultimate states of both encoders side by side, and the projected
    pooled prompt of the second. The network also embeds six numbers of each image, ``time_ids``: height and width of the file, top and left
    of the crop, height and width of what is trained, in pixels.

    The refiner has the second encoder alone, and five time ids: an aesthetic score takes the place of the size in training.
    """

    spec = SPEC
    parts: SdxlComponents

    def __init__(self, options: TrainingOptions, devices: Devices) -> None:
        super().__init__(options, devices)
        self.is_refiner = options.model.model_flavour in REFINERS
        self.aesthetic_score = options.of_family(SdxlOptions).data_aesthetic_score

    @property
    def objective_options(self) -> ObjectiveOptions:
        """All of the noise schedule for a refiner that is to become a model of its own."""
        chosen, uses_all = self.options.objective, self.options.of_family(SdxlOptions).sdxl_refiner_uses_full_range
        return chosen.model_copy(update={"refiner_training": False}) if self.is_refiner and uses_all else chosen

    def make_components(self) -> SdxlComponents:
        return SdxlComponents(self.options.model, self.spec)

    # ---- prompts ----

    @property
    def clip_outputs(self) -> Mapping[str, ClipOutput]:
        skip = self.options.model.clip_skip
        second = {"text_encoder_2": ClipOutput(skip, penultimate=True, pooled=True)}
        return second if self.is_refiner else {"text_encoder": ClipOutput(skip, penultimate=True), **second}

    def load_encoder(self, name: str, dtype: torch.dtype) -> ClipEncoder:
        return self.parts.load_clip(dtype) if name == "text_encoder" else self.parts.load_open_clip(dtype)

    def load_tokenizer_of(self, name: str) -> CLIPTokenizer:
        return self.parts.load_tokenizer(tokenizer_of(name))

    def join_states(self, states: Mapping[str, ClipStates]) -> PromptBatch:
        return {"embeds": torch.cat([found.states for found in states.values()], dim=-1), "pooled": states["text_encoder_2"].first}

    # ---- the network ----

    def conditions(self, samples: Sequence[SampleFacts], generators: Sequence[torch.Generator] | None = None) -> Conditions:
        """``time_ids`` (B, 6), or (B, 5) of a refiner."""
        score = self.aesthetic_score if self.is_refiner else None
        return {"time_ids": torch.tensor([time_ids(sample, score) for sample in samples], dtype=torch.float32)}

    def added_conditions(self, inputs: StepInputs, device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
        """``text_embeds`` (B, P) and ``time_ids`` (B, 6 or 5)."""
        return {
            "text_embeds": inputs.prompts["pooled"].to(device, dtype),
            "time_ids": inputs.conditions["time_ids"].to(device, dtype),
        }

    # ---- validation images and the result ----

    @property
    def pipeline_name(self) -> str:
        if self.spec.steers:
            return self.spec.steers.pipeline
        return "StableDiffusionXLImg2ImgPipeline" if self.is_refiner else "StableDiffusionXLPipeline"

    def bare_pipeline(self, unet: nn.Module, scheduler: SchedulerMixin, trained: Mapping[str, nn.Module]) -> Any:
        no_text = dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
        parts = {**no_text, **trained, **self.pipeline_settings()}
        pipeline = getattr(diffusers, self.pipeline_name)
        return pipeline(vae=self.vae(), unet=unet, scheduler=scheduler, add_watermarker=False, **parts)

    def pipeline_settings(self) -> Mapping[str, Any]:
        return {"requires_aesthetics_score": True} if self.is_refiner else {}

    def image_arguments(self, request: GenerationRequest) -> dict[str, Any]:
        """A refiner changes an image: it is given grey latents, of which the first step's noise leaves nothing."""
        if not self.is_refiner:
            return super().image_arguments(request)
        cells, channels = self.spec.latents.scale_factor_px, self.spec.latents.channels
        grey = torch.zeros(1, channels, request.height // cells, request.width // cells)
        return {"image": grey, "strength": 1.0, "aesthetic_score": self.aesthetic_score}

    def pipeline_prompts(self, batch: PromptBatch) -> dict[str, Tensor]:
        embeds, pooled = batch["embeds"], batch["pooled"]
        return {
            "prompt_embeds": embeds[:1],
            "negative_prompt_embeds": embeds[1:],
            "pooled_prompt_embeds": pooled[:1],
            "negative_pooled_prompt_embeds": pooled[1:],
        }

    def text_parts(self) -> Mapping[str, CopiedPart]:
        parts = self.parts
        kinds: dict[str, tuple[str, Callable[[], Any]]] = {
            "text_encoder": ("CLIPTextModel", lambda: parts.load_clip(None)),
            "text_encoder_2": ("CLIPTextModelWithProjection", lambda: parts.load_open_clip(None)),
            "tokenizer": ("CLIPTokenizer", lambda: parts.load_tokenizer("tokenizer")),
            "tokenizer_2": ("CLIPTokenizer", lambda: parts.load_tokenizer("tokenizer_2")),
        }
        return {
            name: CopiedPart("transformers", kinds[name][0], self.parts.find(name), kinds[name][1], is_text=True)
            for name in (*self.clip_outputs, *map(tokenizer_of, self.clip_outputs))
        }


def time_ids(sample: SampleFacts, aesthetic_score: float | None = None) -> list[float]:
    """Height and width of the file, top and left of the crop, height and width of what is trained (Podell et al., section 2.2).

    With an ``aesthetic_score``, as refiners take it, the score replaces the last two.
    """
    (width, height), (left, top), (target_width, target_height) = sample.original_size, sample.crop_corner, sample.target_size
    last = (target_height, target_width) if aesthetic_score is None else (aesthetic_score,)
    return [float(value) for value in (height, width, top, left, *last)]


FAMILY = StableDiffusionXL
