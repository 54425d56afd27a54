"""AuraFlow as the trainer sees it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from diffusers import AuraFlowPipeline
from PIL import Image
from torch import Tensor, nn

from trainer_engine.config.options import TrainingOptions
from trainer_engine.families.auraflow.attention import DispatchedAttention
from trainer_engine.families.auraflow.components import AuraFlowComponents
from trainer_engine.families.auraflow.spec import SPEC
from trainer_engine.families.common.autoencoder import Autoencoder
from trainer_engine.families.common.flow_family import FlowFamily
from trainer_engine.families.common.latent_squares import token_count
from trainer_engine.families.common.t5_text import T5Family, T5Text
from trainer_engine.families.generation import GenerationRequest, SamplerStep, StepReport
from trainer_engine.families.inputs import PromptBatch, PromptEmbedding, StepInputs
from trainer_engine.runtime.devices import Devices


class AuraFlow(FlowFamily, T5Family):
    """fal, 2024, "Introducing AuraFlow v0.1, an Open Exploration of Large Rectified Flow Models".

    A prompt is ``{"embeds": (T, D)}``: the states of Pile T5 for its tokens. The network takes as many tokens of every prompt as the
    pipeline pads it to. Those of the padding are zeros that nothing hides: attention sees them, and how many there are. They have no
    positions, so that it makes no difference on which side a tokenizer pads.
    """

    spec = SPEC
    parts: AuraFlowComponents

    def __init__(self, options: TrainingOptions, devices: Devices) -> None:
        super().__init__(options, devices)
        self.parts = AuraFlowComponents(options.model)
        self.autoencoder = Autoencoder(lambda: self.parts.load_vae(devices.vae), devices.device, options.autoencoder)
        self.text = T5Text(self.load_text, devices.device, token_limit=self.token_limit)

    # ---- encoders ----

    def encode_prompts(self, prompts: Sequence[str], references: Sequence[Sequence[Tensor]] = ()) -> list[PromptEmbedding]:
        """As the pipeline does it; longer prompts are cut off."""
        states, mask = self.text.encode(prompts)
        return [{"embeds": state[real].clone()} for state, real in zip(states, mask.bool(), strict=True)]

    def collate_prompts(self, prompts: Sequence[PromptEmbedding]) -> PromptBatch:
        """``embeds`` (B, ``token_limit``, D): zeros after the last token."""
        states = [prompt["embeds"] for prompt in prompts]
        embeds = states[0].new_zeros(len(states), self.token_limit, states[0].shape[-1])
        for row, state in enumerate(states):
            embeds[row, : len(state)] = state
        return {"embeds": embeds}

    # ---- the network ----

    def load_component(self, name: str, dtype: torch.dtype, folder: Path | None = None) -> nn.Module:
        network = super().load_component(name, dtype, folder)
        DispatchedAttention.give(network)
        return network

    def token_count(self, latent_shape: Sequence[int]) -> int:
        return token_count(latent_shape)

    def predict(self, network: nn.Module, inputs: StepInputs) -> Tensor:
        """Return the velocity (B, C, h, w)."""
        device, dtype = self.devices.device, self.devices.network
        output: Tensor = network(
            inputs.noisy_latents.to(device, dtype),
            encoder_hidden_states=inputs.prompts["embeds"].to(device, dtype),
            timestep=inputs.timesteps.to(device, torch.float32),
            return_dict=False,
        )[0]
        return output

    # ---- validation and the result ----

    @property
    def pipeline_name(self) -> str:
        return "AuraFlowPipeline"

    @torch.no_grad()
    def generate(
        self, pipeline: AuraFlowPipeline, request: GenerationRequest, *, on_step: Callable[[SamplerStep], None] | None = None
    ) -> Image.Image:
        """``request.guidance`` is classifier-free guidance."""
        embeds = self.collate_prompts([request.prompt, request.negative])["embeds"].to(self.devices.device, self.devices.network)
        every_token = embeds.new_ones(embeds.shape[:2])  # asked for, and not read
        with self.devices.autocast():
            latents = pipeline(
                prompt_embeds=embeds[:1],
                prompt_attention_mask=every_token[:1],
                negative_prompt_embeds=embeds[1:],
                negative_prompt_attention_mask=every_token[1:],
                height=request.height,
                width=request.width,
                num_inference_steps=request.steps,
                guidance_scale=request.guidance,
                generator=request.generator(),
                output_type="latent",
                callback_on_step_end=StepReport(on_step),
            ).images
        return self.autoencoder.picture(latents)


FAMILY = AuraFlow
