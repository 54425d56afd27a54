"""Stable Diffusion 1 and 2 (Rombach et al., 2022): one UNet, one CLIP text encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from diffusers import SchedulerMixin, StableDiffusionPipeline
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from trainer_engine.config.options import TrainingOptions
from trainer_engine.datasets.hashes import FileHashes
from trainer_engine.families.base import GenerationRequest
from trainer_engine.families.common.clip_text import encode_clip
from trainer_engine.families.common.pipeline_folder import CopiedPart
from trainer_engine.families.common.unet import UNetComponents, UNetFamily
from trainer_engine.families.inputs import PromptEmbedding
from trainer_engine.runtime.devices import Devices
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


class StableDiffusion(UNetFamily):
    """A prompt is ``{"embeds": (77, D)}``: CLIP's states with its padding, which the network attends to."""

    parts: StableDiffusionComponents

    def __init__(self, options: TrainingOptions, devices: Devices) -> None:
        super().__init__(options, devices)
        self._text: tuple[CLIPTextModel, CLIPTokenizer] | None = None

    def make_components(self) -> StableDiffusionComponents:
        return StableDiffusionComponents(self.options.model, self.spec)

    def text_fingerprint(self, hashes: FileHashes) -> str:
        weights = " ".join(self.parts.find(name).fingerprint(hashes) for name in ("text_encoder", "tokenizer"))
        precision = self.options.precision.text_encoder_1_precision
        return f"{weights} {self.devices.text} skip {self.options.model.clip_skip} {precision}"

    def encode_prompts(self, prompts: Sequence[str], references: Sequence[Sequence[Tensor]] = ()) -> list[PromptEmbedding]:
        text = self._text
        if text is None:
            encoder = self.parts.load_text_encoder(self.devices.text)
            self.place(encoder, self.options.precision.text_encoder_1_precision, part="text_encoder")
            self._text = text = encoder, self.parts.load_tokenizer()
        states, _ = encode_clip(*text, prompts, skip=self.options.model.clip_skip, normalize=True)
        return [{"embeds": state.clone()} for state in states]

    def free_text_encoders(self) -> None:
        self._text = None

    @property
    def pipeline_name(self) -> str:
        return "StableDiffusionPipeline"

    def bare_pipeline(self, unet: nn.Module, scheduler: SchedulerMixin) -> StableDiffusionPipeline:
        return StableDiffusionPipeline(
            vae=self.vae(),
            text_encoder=None,
            tokenizer=None,
            unet=unet,
            scheduler=scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )

    def pipeline_prompts(self, request: GenerationRequest) -> dict[str, Tensor]:
        batch = self.collate_prompts([request.prompt, request.negative])["embeds"].to(self.devices.device)
        return {"prompt_embeds": batch[:1], "negative_prompt_embeds": batch[1:]}

    def text_parts(self) -> Mapping[str, CopiedPart]:
        def save_text_encoder(folder: Path) -> None:
            self.parts.load_text_encoder(None).save_pretrained(folder)

        def save_tokenizer(folder: Path) -> None:
            self.parts.load_tokenizer().save_pretrained(folder)

        return {
            "text_encoder": CopiedPart("transformers", "CLIPTextModel", self.parts.find("text_encoder"), save_text_encoder, is_text=True),
            "tokenizer": CopiedPart("transformers", "CLIPTokenizer", self.parts.find("tokenizer"), save_tokenizer, is_text=True),
        }
