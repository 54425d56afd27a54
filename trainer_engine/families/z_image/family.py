"""Z-Image as the trainer sees it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from diffusers import ZImagePipeline
from PIL import Image
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trainer_engine.config.options import TrainingOptions
from trainer_engine.families.common.autoencoder import Autoencoder
from trainer_engine.families.common.chat_prompts import ChatEncoder, ChatFamily, ragged, side_by_side
from trainer_engine.families.common.flow_family import FlowFamily
from trainer_engine.families.generation import GenerationRequest, SamplerStep, StepReport
from trainer_engine.families.inputs import PromptBatch, PromptEmbedding, StepInputs
from trainer_engine.families.z_image.components import ZImageComponents
from trainer_engine.families.z_image.spec import SPEC
from trainer_engine.runtime.devices import Devices

STATES = -2
"""The states of the text encoder that the network takes: those before its last layer."""
PATCH_CELLS = 2
"""Latent cells along the height and the width of a token."""


class ZImage(FlowFamily, ChatFamily):
    """Tongyi-MAI, 2025, "Z-Image: An Efficient Image Generation Foundation Model with Single-Stream Diffusion Transformer".

    A prompt is ``{"embeds": (T, D)}``: Qwen3's states of its tokens in the chat template. The network takes a list of prompts without
    padding; it pads each to a multiple of 32 with a token that it has learned, and hides what a shorter prompt of a batch lacks.
    """

    spec = SPEC
    parts: ZImageComponents

    def __init__(self, options: TrainingOptions, devices: Devices) -> None:
        super().__init__(options, devices)
        self.parts = ZImageComponents(options.model)
        self.autoencoder = Autoencoder(lambda: self.parts.load_vae(devices.vae), devices.device, options.autoencoder)
        self.text = ChatEncoder(
            self.load_text,
            devices.device,
            layers=(STATES,),
            token_limit=self.token_limit,
            add_generation_prompt=True,
            enable_thinking=True,
        )

    # ---- encoders ----

    def load_language_model(self, dtype: torch.dtype) -> PreTrainedModel:
        return self.parts.load_text_encoder(dtype)

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        return self.parts.load_tokenizer()

    def collate_prompts(self, prompts: Sequence[PromptEmbedding]) -> PromptBatch:
        return side_by_side(prompts)

    # ---- the network ----

    def token_count(self, latent_shape: Sequence[int]) -> int:
        _, height, width = latent_shape
        return height * width // PATCH_CELLS**2

    def predict(self, network: nn.Module, inputs: StepInputs) -> Tensor:
        """Return the velocity (B, C, h, w). The network counts time from noise to image, and predicts the way back."""
        device, dtype = self.devices.device, self.devices.network
        latents = inputs.noisy_latents.to(device, dtype).unsqueeze(2)
        time = 1 - inputs.timesteps.to(device, torch.float32)
        outputs = network(list(latents.unbind()), time, ragged(inputs.prompts, device, dtype), return_dict=False)[0]
        return -torch.stack(outputs).squeeze(2)

    # ---- validation and the result ----

    @property
    def pipeline_name(self) -> str:
        return "ZImagePipeline"

    @torch.no_grad()
    def generate(
        self, pipeline: ZImagePipeline, request: GenerationRequest, *, on_step: Callable[[SamplerStep], None] | None = None
    ) -> Image.Image:
        """The pipeline adds ``guidance`` times the difference to the prediction for the prompt, so that 0 is no guidance."""
        prompt, negative = ragged(self.collate_prompts([request.prompt, request.negative]), self.devices.device, self.devices.network)

        with self.devices.autocast():
            latents = pipeline(
                prompt_embeds=[prompt],
                negative_prompt_embeds=[negative],
                height=request.height,
                width=request.width,
                num_inference_steps=request.steps,
                guidance_scale=request.guidance,
                generator=request.generator(),
                output_type="latent",
                callback_on_step_end=StepReport(on_step),
            ).images
        return self.autoencoder.picture(latents)


FAMILY = ZImage
