"""Krea 2 as the trainer sees it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from diffusers import Krea2Pipeline
from PIL import Image
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trainer_engine.config.options import TrainingOptions
from trainer_engine.datasets.hashes import FileHashes
from trainer_engine.families.common.autoencoder import FrameAutoencoder
from trainer_engine.families.common.chat_prompts import ChatFamily, padded
from trainer_engine.families.common.flow_family import FlowFamily
from trainer_engine.families.common.latent_squares import CELLS, pack, token_count, unpack
from trainer_engine.families.generation import GenerationRequest, SamplerStep, StepReport
from trainer_engine.families.inputs import STORED, PromptBatch, PromptEmbedding, StepInputs
from trainer_engine.families.krea2.components import Krea2Components
from trainer_engine.families.krea2.prompts import StackedEncoder, as_sampled
from trainer_engine.families.krea2.spec import SPEC
from trainer_engine.runtime.devices import Devices


class Krea2(FlowFamily, ChatFamily):
    """Krea, 2026, "Krea 2".

    A prompt is ``{"embeds": (T, layers, D)}``: the states of several layers of Qwen3-VL, stacked for each token of the prompt and of the
    end of the conversation. Latents are (C, h, w); the autoencoder takes an image as a clip of one frame.
    """

    spec = SPEC
    parts: Krea2Components

    def __init__(self, options: TrainingOptions, devices: Devices) -> None:
        super().__init__(options, devices)
        self.parts = Krea2Components(options.model)
        self.autoencoder = FrameAutoencoder(lambda: self.parts.load_frame_vae(devices.vae), devices.device, options.autoencoder)
        self.text: StackedEncoder = StackedEncoder(
            self.load_text, devices.device, find_layers=self.parts.text_layers, token_limit=self.token_limit
        )

    # ---- encoders ----

    def load_language_model(self, dtype: torch.dtype) -> PreTrainedModel:
        return self.parts.load_language_model(dtype)

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        return self.parts.load_tokenizer()

    def text_fingerprint(self, hashes: FileHashes) -> str:
        return f"{super().text_fingerprint(hashes)} {self.parts.text_layers()} {STORED}"

    def collate_prompts(self, prompts: Sequence[PromptEmbedding]) -> PromptBatch:
        return padded(prompts)

    # ---- the network ----

    def token_count(self, latent_shape: Sequence[int]) -> int:
        return token_count(latent_shape)

    def predict(self, network: nn.Module, inputs: StepInputs) -> Tensor:
        """Return the velocity (B, C, h, w). The tokens of the prompt come before those of the image, all at one position."""
        device, dtype, mask = self.devices.device, self.devices.network, inputs.prompts.get("mask")
        latents, embeds = inputs.noisy_latents.to(device, dtype), inputs.prompts["embeds"].to(device, dtype)
        height, width = latents.shape[-2:]
        tokens: Tensor = network(
            hidden_states=pack(latents),
            encoder_hidden_states=embeds,
            timestep=inputs.timesteps.to(device, torch.float32),
            position_ids=Krea2Pipeline.prepare_position_ids(embeds.shape[1], height // CELLS, width // CELLS, device),
            encoder_attention_mask=None if mask is None else mask.to(device),
            return_dict=False,
        )[0]
        return unpack(tokens, height, width)

    # ---- validation and the result ----

    @property
    def pipeline_name(self) -> str:
        return "Krea2Pipeline"

    @property
    def pipeline_settings(self) -> Mapping[str, Any]:
        return self.parts.settings

    @torch.no_grad()
    def generate(
        self, pipeline: Krea2Pipeline, request: GenerationRequest, *, on_step: Callable[[SamplerStep], None] | None = None
    ) -> Image.Image:
        """The pipeline adds ``guidance`` times the difference to the prediction for the prompt, so that 0 is no guidance."""
        cell = SPEC.latents.scale_factor_px
        height, width = request.height // cell, request.width // cell
        negative = self._given("negative_prompt_embeds", request.negative) if request.guidance > 0 else {}
        report = StepReport(on_step, lambda latents: unpack(latents, height, width))
        with self.devices.autocast():
            pipeline(
                **self._given("prompt_embeds", request.prompt),
                **negative,
                guidance_scale=request.guidance,
                height=request.height,
                width=request.width,
                num_inference_steps=request.steps,
                generator=request.generator(),
                output_type="latent",
                callback_on_step_end=report,
            )
        return self.preview(report.latents)

    def _given(self, name: str, prompt: PromptEmbedding) -> dict[str, Tensor]:
        """A prompt as arguments of the pipeline."""
        embeds, mask = as_sampled(prompt["embeds"].to(self.devices.device, self.devices.network), self.token_limit)
        return {name: embeds, f"{name}_mask": mask}


FAMILY = Krea2
