"""Kolors as the trainer sees it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import KolorsPipeline, SchedulerMixin
from diffusers.pipelines.kolors.text_encoder import ChatGLMModel
from diffusers.pipelines.kolors.tokenizer import ChatGLMTokenizer
from torch import Tensor, nn

from trainer_engine.config.options import TrainingOptions
from trainer_engine.datasets.hashes import FileHashes
from trainer_engine.families.common.pipeline_folder import CopiedPart
from trainer_engine.families.common.sized_unet import SizedUNetFamily
from trainer_engine.families.inputs import PromptBatch, PromptEmbedding
from trainer_engine.families.kolors.components import KolorsComponents
from trainer_engine.families.kolors.prompts import GlmEncoder
from trainer_engine.families.kolors.spec import SPEC
from trainer_engine.runtime.devices import Devices


class Kolors(SizedUNetFamily):
    """Kolors Team, 2024, "Kolors: Effective Training of Diffusion Model for Photorealistic Text-to-Image Synthesis".

    A prompt is ``{"embeds": (256, D), "pooled": (D,)}``, with the states of its padding. The network makes them as wide as its attention.
    """

    spec = SPEC
    parts: KolorsComponents

    def __init__(self, options: TrainingOptions, devices: Devices) -> None:
        super().__init__(options, devices)
        self.text = GlmEncoder(self.load_text, devices.device, self.token_limit)

    def make_components(self) -> KolorsComponents:
        return KolorsComponents(self.options.model, self.spec)

    # ---- prompts ----

    def load_text(self) -> tuple[ChatGLMModel, ChatGLMTokenizer]:
        """The text encoder, on its device in the precision that was asked for, and its tokenizer."""
        encoder = self.parts.load_text_encoder(self.devices.text)
        self.place(encoder, self.options.precision.text_encoder_1_precision, part="text_encoder")
        return encoder, self.parts.load_tokenizer()

    def text_fingerprint(self, hashes: FileHashes) -> str:
        return self.encoder_fingerprint(hashes)

    def encode_prompts(self, prompts: Sequence[str], references: Sequence[Sequence[Tensor]] = ()) -> list[PromptEmbedding]:
        return self.text.encode(prompts)

    def free_text_encoders(self) -> None:
        self.text.free()

    def collate_prompts(self, prompts: Sequence[PromptEmbedding]) -> PromptBatch:
        """All prompts have one length."""
        return {name: torch.stack([prompt[name] for prompt in prompts]) for name in prompts[0]}

    # ---- validation images and the result ----

    @property
    def pipeline_name(self) -> str:
        return "KolorsPipeline"

    def bare_pipeline(self, unet: nn.Module, scheduler: SchedulerMixin, trained: Mapping[str, nn.Module]) -> Any:
        return KolorsPipeline(vae=self.vae(), text_encoder=None, tokenizer=None, unet=unet, scheduler=scheduler)

    def text_parts(self) -> Mapping[str, CopiedPart]:
        return self.parts.copied_text()


FAMILY = Kolors
