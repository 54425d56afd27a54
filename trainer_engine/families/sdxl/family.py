"""Stable Diffusion XL as the trainer sees it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from diffusers import SchedulerMixin, StableDiffusionXLPipeline
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from trainer_engine.config.options import TrainingOptions
from trainer_engine.datasets.hashes import FileHashes
from trainer_engine.families.base import GenerationRequest
from trainer_engine.families.common.clip_text import encode_clip
from trainer_engine.families.common.pipeline_folder import CopiedPart
from trainer_engine.families.common.unet import UNetFamily
from trainer_engine.families.inputs import Conditions, PromptEmbedding, SampleFacts, StepInputs
from trainer_engine.families.sdxl.components import SdxlComponents
from trainer_engine.families.sdxl.spec import SPEC
from trainer_engine.runtime.devices import Devices

PENULTIMATE = 1
"""Layers before the last one whose states the network was trained with; ``clip_skip`` counts from there."""
TextEncoders = tuple[CLIPTextModel, CLIPTokenizer, CLIPTextModelWithProjection, CLIPTokenizer]


class StableDiffusionXL(UNetFamily):
    """Podell et al., 2023, "SDXL: Improving Latent Diffusion Models for High-Resolution Image Synthesis".

    A prompt is ``{"embeds": (77, D1 + D2), "pooled": (P,)}``: the penultimate states of both encoders side by side, and the projected
    pooled prompt of the second. The network also embeds six numbers of each image, ``time_ids``: height and width of the file, top and left
    of the crop, height and width of what is trained, in pixels.
    """

    spec = SPEC
    parts: SdxlComponents

    def __init__(self, options: TrainingOptions, devices: Devices) -> None:
        super().__init__(options, devices)
        self._text: TextEncoders | None = None

    def make_components(self) -> SdxlComponents:
        return SdxlComponents(self.options.model, self.spec)

    # ---- prompts ----

    def text_fingerprint(self, hashes: FileHashes) -> str:
        names = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
        weights = " ".join(self.parts.find(name).fingerprint(hashes) for name in names)
        chosen = self.options.precision
        precisions = f"{chosen.text_encoder_1_precision} {chosen.text_encoder_2_precision}"
        return f"{weights} {self.devices.text} skip {self.options.model.clip_skip} {precisions}"

    def encode_prompts(self, prompts: Sequence[str], references: Sequence[Sequence[Tensor]] = ()) -> list[PromptEmbedding]:
        clip, tokenizer, open_clip, tokenizer_2 = self._text_encoders()
        skip = self.options.model.clip_skip + PENULTIMATE
        first, _ = encode_clip(clip, tokenizer, prompts, skip=skip, normalize=False)
        second, pooled = encode_clip(open_clip, tokenizer_2, prompts, skip=skip, normalize=False)
        embeds = torch.cat([first, second], dim=-1)
        return [{"embeds": embed.clone(), "pooled": summary.clone()} for embed, summary in zip(embeds, pooled, strict=True)]

    def _text_encoders(self) -> TextEncoders:
        if self._text is None:
            clip, open_clip = self.parts.load_clip(self.devices.text), self.parts.load_open_clip(self.devices.text)
            self.place(clip, self.options.precision.text_encoder_1_precision, part="text_encoder")
            self.place(open_clip, self.options.precision.text_encoder_2_precision, part="text_encoder_2")
            self._text = clip, self.parts.load_tokenizer("tokenizer"), open_clip, self.parts.load_tokenizer("tokenizer_2")
        return self._text

    def free_text_encoders(self) -> None:
        self._text = None

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

    def bare_pipeline(self, unet: nn.Module, scheduler: SchedulerMixin) -> StableDiffusionXLPipeline:
        return StableDiffusionXLPipeline(
            vae=self.vae(),
            text_encoder=None,
            text_encoder_2=None,
            tokenizer=None,
            tokenizer_2=None,
            unet=unet,
            scheduler=scheduler,
            add_watermarker=False,
        )

    def pipeline_prompts(self, request: GenerationRequest) -> dict[str, Tensor]:
        batch = self.collate_prompts([request.prompt, request.negative])
        embeds, pooled = batch["embeds"].to(self.devices.device), batch["pooled"].to(self.devices.device)
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
