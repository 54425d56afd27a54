"""Lumina-Image 2.0 as the trainer sees it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from diffusers import Lumina2Pipeline
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trainer_engine.config.options import TrainingOptions
from trainer_engine.families.common.autoencoder import Autoencoder
from trainer_engine.families.common.chat_prompts import ChatFamily, ragged, side_by_side
from trainer_engine.families.common.flow_family import FlowFamily
from trainer_engine.families.common.latent_squares import token_count
from trainer_engine.families.generation import GenerationRequest, SamplerStep, StepReport
from trainer_engine.families.inputs import PromptBatch, PromptEmbedding, StepInputs, as_negative
from trainer_engine.families.lumina2.attention import DispatchedAttention
from trainer_engine.families.lumina2.components import Lumina2Components
from trainer_engine.families.lumina2.prompts import InstructedEncoder
from trainer_engine.families.lumina2.refiners import RecomputedRefiner
from trainer_engine.families.lumina2.spec import SPEC
from trainer_engine.runtime.devices import Devices

STATES = -2
"""The states of the text encoder that the network takes: those before its last layer."""


class Lumina2(FlowFamily, ChatFamily):
    """Qin et al., 2025, "Lumina-Image 2.0: A Unified and Efficient Image Generative Framework".

    A prompt is ``{"embeds": (T, D)}``: Gemma's states of the instruction and the prompt. The network reads the length of each prompt off
    its mask, which therefore stays in the memory of the host, and puts the tokens of the image behind it.
    """

    spec = SPEC
    parts: Lumina2Components

    def __init__(self, options: TrainingOptions, devices: Devices) -> None:
        super().__init__(options, devices)
        self.parts = Lumina2Components(options.model)
        self.autoencoder = Autoencoder(lambda: self.parts.load_vae(devices.vae), devices.device, options.autoencoder)
        self.text = InstructedEncoder(self.load_text, devices.device, layers=(STATES,), token_limit=self.token_limit)

    # ---- encoders ----

    def load_language_model(self, dtype: torch.dtype) -> PreTrainedModel:
        return self.parts.load_text_encoder(dtype)

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        return self.parts.load_tokenizer()

    def negative_text(self, text: str) -> str:
        """Negative prompts are read without the instruction."""
        return as_negative(text)

    def collate_prompts(self, prompts: Sequence[PromptEmbedding]) -> PromptBatch:
        return side_by_side(prompts)

    # ---- the network ----

    def load_component(self, name: str, dtype: torch.dtype, folder: Path | None = None) -> nn.Module:
        network: nn.Module = self.parts.load_transformer(dtype, folder)
        DispatchedAttention.give(network)
        return network

    def load_network(self, checkpoint: Path | None = None) -> nn.Module:
        network = super().load_network(checkpoint)
        RecomputedRefiner.give(network)
        return network

    def token_count(self, latent_shape: Sequence[int]) -> int:
        return token_count(latent_shape)

    def predict(self, network: nn.Module, inputs: StepInputs) -> Tensor:
        """Return the velocity (B, C, h, w). The network counts time from noise to image, and predicts the way back."""
        device, dtype = self.devices.device, self.devices.network
        embeds, mask = with_mask(ragged(inputs.prompts, device, dtype))
        output: Tensor = network(
            hidden_states=inputs.noisy_latents.to(device, dtype),
            timestep=1 - inputs.timesteps.to(device, torch.float32),
            encoder_hidden_states=embeds,
            encoder_attention_mask=mask,
            return_dict=False,
        )[0]
        return -output

    # ---- validation and the result ----

    @property
    def pipeline_name(self) -> str:
        return "Lumina2Pipeline"

    @torch.no_grad()
    def generate(
        self, pipeline: Lumina2Pipeline, request: GenerationRequest, *, on_step: Callable[[SamplerStep], None] | None = None
    ) -> Image.Image:
        """``request.guidance`` is classifier-free guidance at every step, after which the pipeline restores the norm of each row."""
        device, dtype = self.devices.device, self.devices.network
        prompts = ragged(self.collate_prompts([request.prompt, request.negative]), device, dtype)
        embeds, mask = with_mask(prompts, self.token_limit)  # as many tokens as the pipeline has
        with self.devices.autocast():
            latents = pipeline(
                prompt_embeds=embeds[:1],
                prompt_attention_mask=mask[:1],
                negative_prompt_embeds=embeds[1:],
                negative_prompt_attention_mask=mask[1:],
                height=request.height,
                width=request.width,
                num_inference_steps=request.steps,
                guidance_scale=request.guidance,
                generator=request.generator(),
                output_type="latent",
                callback_on_step_end=StepReport(on_step),
            ).images
        return self.autoencoder.picture(latents)


def with_mask(prompts: Sequence[Tensor], least: int = 0) -> tuple[Tensor, Tensor]:
    """The states (T, D) of each prompt -> (B, T, D), T at ``least`` that long, and a mask (B, T) on the CPU, true for real tokens."""
    longest = max(least, *(len(states) for states in prompts))
    mask = torch.ones(len(prompts), longest, dtype=torch.bool)
    rows = []
    for row, states in enumerate(prompts):
        missing = longest - len(states)
        if missing:
            mask[row, len(states) :].zero_()
        rows.append(pad(states, (0, 0, 0, missing)) if missing else states)
    return torch.stack(rows), mask


FAMILY = Lumina2
