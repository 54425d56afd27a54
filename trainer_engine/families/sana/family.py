"""Sana as the trainer sees it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
from diffusers import SanaPipeline, SanaTransformer2DModel
from PIL import Image
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trainer_engine.config.options import TrainingOptions
from trainer_engine.datasets.hashes import FileHashes
from trainer_engine.families.common.chat_prompts import ChatFamily
from trainer_engine.families.common.flow_family import FlowFamily
from trainer_engine.families.generation import GenerationRequest, SamplerStep, StepReport
from trainer_engine.families.inputs import PromptBatch, PromptEmbedding, StepInputs, as_negative
from trainer_engine.families.modules import unwrap
from trainer_engine.families.sana.components import DeepAutoencoder, SanaParts
from trainer_engine.families.sana.options import SanaOptions
from trainer_engine.families.sana.prompts import InstructedText, published_instruction
from trainer_engine.families.sana.spec import SPEC
from trainer_engine.runtime.devices import Devices

TIMESTEPS = 1000
"""The network counts time up to this, times a factor of its configuration."""


class Sana(FlowFamily, ChatFamily):
    """Xie et al., 2024, "SANA: Efficient High-Resolution Image Synthesis with Linear Diffusion Transformers".

    A prompt is ``{"embeds": (T, D)}``: Gemma 2's states of its tokens, without padding. The network gets every prompt with 300 tokens, as
    in the pipeline, and the mask hides the padding from cross-attention. Attention within the image is linear and has no mask.
    """

    spec = SPEC
    parts: SanaParts

    def __init__(self, options: TrainingOptions, devices: Devices) -> None:
        super().__init__(options, devices)
        self.parts = SanaParts(options.model)
        self.autoencoder = DeepAutoencoder(lambda: self.parts.load_deep_vae(devices.vae), devices.device, options.autoencoder)
        instruction = options.of_family(SanaOptions).sana_complex_human_instruction or published_instruction()
        self.text: InstructedText = InstructedText(self.load_text, devices.device, instruction=instruction, token_limit=self.token_limit)

    # ---- encoders ----

    def text_fingerprint(self, hashes: FileHashes) -> str:
        return f"{self.encoder_fingerprint(hashes)} behind {self.text.instruction!r}"

    def negative_text(self, text: str) -> str:
        """Negative prompts are read without the instruction."""
        return as_negative(text)

    def load_language_model(self, dtype: torch.dtype) -> PreTrainedModel:
        return self.parts.load_text_encoder(dtype)

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        return self.parts.load_tokenizer()

    def collate_prompts(self, prompts: Sequence[PromptEmbedding]) -> PromptBatch:
        """``embeds`` (B, 300, D) and ``mask`` (B, 300), 1 for what is no padding."""
        states = [prompt["embeds"] for prompt in prompts]
        embeds = states[0].new_zeros(len(states), self.token_limit, states[0].shape[-1])
        mask = torch.zeros(len(states), self.token_limit, dtype=torch.int64)
        for row, state in enumerate(states):
            embeds[row, : len(state)], mask[row, : len(state)] = state, 1
        return {"embeds": embeds, "mask": mask}

    # ---- the transformer ----

    def token_count(self, latent_shape: Sequence[int]) -> int:
        _, height, width = latent_shape
        return height * width

    def predict(self, network: nn.Module, inputs: StepInputs) -> Tensor:
        """Return the velocity (B, C, h, w)."""
        device, dtype = self.devices.device, self.devices.network
        bare = cast("SanaTransformer2DModel", unwrap(network))
        velocity: Tensor = network(
            inputs.noisy_latents.to(device, dtype),
            encoder_hidden_states=inputs.prompts["embeds"].to(device, dtype),
            encoder_attention_mask=inputs.prompts["mask"].to(device),
            timestep=inputs.timesteps.to(device, torch.float32) * (TIMESTEPS * bare.config.timestep_scale),
            return_dict=False,
        )[0]
        return velocity

    # ---- validation and the result ----

    @property
    def pipeline_name(self) -> str:
        return "SanaPipeline"

    @torch.no_grad()
    def generate(
        self, pipeline: SanaPipeline, request: GenerationRequest, *, on_step: Callable[[SamplerStep], None] | None = None
    ) -> Image.Image:
        batch = self.collate_prompts([request.prompt, request.negative])
        embeds, mask = (batch[name].to(self.devices.device) for name in ("embeds", "mask"))
        with self.devices.autocast():
            latents = pipeline(
                prompt_embeds=embeds[:1],
                prompt_attention_mask=mask[:1],
                negative_prompt=None,
                negative_prompt_embeds=embeds[1:],
                negative_prompt_attention_mask=mask[1:],
                height=request.height,
                width=request.width,
                num_inference_steps=request.steps,
                guidance_scale=request.guidance,
                generator=request.generator(),
                use_resolution_binning=False,
                output_type="latent",
                callback_on_step_end=StepReport(on_step),
            ).images
        return self.autoencoder.picture(latents)


FAMILY = Sana
