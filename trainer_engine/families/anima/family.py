"""Anima as the trainer sees it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from diffusers import ClassifierFreeGuidance, SchedulerMixin
from PIL import Image
from torch import Tensor, nn

from trainer_engine.config.options import TrainingOptions
from trainer_engine.datasets.hashes import FileHashes
from trainer_engine.families.anima.components import AnimaComponents
from trainer_engine.families.anima.pipeline import DenoisingPipeline
from trainer_engine.families.anima.prompts import ConditionedPrompts, TextParts
from trainer_engine.families.anima.spec import CONDITIONER, SPEC, T5_TOKENIZER
from trainer_engine.families.common.autoencoder import FrameAutoencoder
from trainer_engine.families.common.flow_family import FlowFamily
from trainer_engine.families.common.latent_squares import token_count
from trainer_engine.families.generation import GenerationRequest, SamplerStep
from trainer_engine.families.inputs import PromptBatch, PromptEmbedding, StepInputs
from trainer_engine.families.modules import free_device_memory
from trainer_engine.runtime.devices import Devices


class Anima(FlowFamily):
    """CircleStone Labs and Comfy Org, 2026, on the network of NVIDIA, 2025, "Cosmos World Foundation Model Platform for Physical AI".

    A prompt is ``{"embeds": (T, D)}``: a state for each of its tokens of T5, which the text conditioner makes of Qwen3's states. The
    network attends to as many states as the longest prompt may have. Those that a prompt lacks are 0, and take part in the attention.
    """

    spec = SPEC
    parts: AnimaComponents

    def __init__(self, options: TrainingOptions, devices: Devices) -> None:
        super().__init__(options, devices)
        self.parts = AnimaComponents(options.model)
        self.autoencoder = FrameAutoencoder(lambda: self.parts.load_frame_vae(devices.vae), devices.device, options.autoencoder)
        self.text = ConditionedPrompts(self._load_text, devices.device, token_limit=self.token_limit)

    # ---- encoders ----

    def _load_text(self) -> TextParts:
        encoder = self.parts.load_text_encoder(self.devices.text)
        self.place(encoder, self.options.precision.text_encoder_1_precision, part="text_encoder")
        conditioner = self.parts.load_conditioner(self.devices.text).to(self.devices.device)
        return TextParts(encoder, self.parts.load_tokenizer(), conditioner, self.parts.load_t5_tokenizer())

    def text_fingerprint(self, hashes: FileHashes) -> str:
        more = (self.parts.find(name).fingerprint(hashes) for name in (CONDITIONER, T5_TOKENIZER))
        return " ".join([self.encoder_fingerprint(hashes), *more])

    def encode_images(self, pixels: Tensor, *, exact: bool = False) -> Tensor:
        return self.autoencoder.encode(pixels, exact=exact)

    def encode_prompts(self, prompts: Sequence[str], references: Sequence[Sequence[Tensor]] = ()) -> list[PromptEmbedding]:
        return [{"embeds": states} for states in self.text.encode(prompts)]

    def free_encoders(self) -> None:
        self.autoencoder.free()
        self.text.free()
        free_device_memory(self.devices.device)

    def collate_prompts(self, prompts: Sequence[PromptEmbedding]) -> PromptBatch:
        """``embeds`` (B, T, D), filled with zeros up to the length that the conditioner fills prompts to."""
        states = [prompt["embeds"] for prompt in prompts]
        embeds = states[0].new_zeros(len(states), max(self.parts.prompt_tokens, *map(len, states)), states[0].shape[-1])
        for row, state in enumerate(states):
            embeds[row, : len(state)] = state
        return {"embeds": embeds}

    # ---- the network ----

    def token_count(self, latent_shape: Sequence[int]) -> int:
        return token_count(latent_shape)

    def predict(self, network: nn.Module, inputs: StepInputs) -> Tensor:
        """Return the velocity (B, C, h, w). The network takes a clip of one frame, no part of which is padding, and time from 0 to 1."""
        device, dtype = self.devices.device, self.devices.network
        latents = inputs.noisy_latents.to(device, dtype).unsqueeze(2)
        output: Tensor = network(
            hidden_states=latents,
            timestep=inputs.timesteps.to(device, torch.float32),
            encoder_hidden_states=inputs.prompts["embeds"].to(device, dtype),
            padding_mask=latents.new_zeros(1, 1, *latents.shape[-2:]),
            return_dict=False,
        )[0]
        return output.squeeze(2)

    # ---- validation and the result ----

    @property
    def pipeline_name(self) -> str:
        return "AnimaModularPipeline"

    def make_pipeline(self, network: nn.Module, *, sampler: str | None = None, spacing: str | None = None) -> DenoisingPipeline:
        scheduler: SchedulerMixin = self.parts.make_scheduler(sampler)
        return DenoisingPipeline(network, scheduler)

    @torch.no_grad()
    def generate(
        self, pipeline: DenoisingPipeline, request: GenerationRequest, *, on_step: Callable[[SamplerStep], None] | None = None
    ) -> Image.Image:
        states = [self.collate_prompts([one])["embeds"] for one in (request.prompt, request.negative)]
        prompt, negative = (one.to(self.devices.device, self.devices.network) for one in states)
        scale, rescale = request.guidance, request.guidance_rescale
        guider = ClassifierFreeGuidance(guidance_scale=scale, guidance_rescale=rescale, enabled=scale > 1)
        pipeline.update_components(guider=guider)
        pipeline.report.on_step = on_step
        with self.devices.autocast():
            latents: Tensor = pipeline(
                prompt_embeds=prompt,
                negative_prompt_embeds=negative,
                height=request.height,
                width=request.width,
                num_inference_steps=request.steps,
                generator=request.generator(),
                output="latents",
            )
        return self.preview(latents.squeeze(2))


FAMILY = Anima
