"""ERNIE-Image as the trainer sees it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from diffusers import ErnieImagePipeline
from PIL import Image
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trainer_engine.config.options import TrainingOptions
from trainer_engine.datasets.hashes import FileHashes
from trainer_engine.families.common.autoencoder import ShuffledAutoencoder
from trainer_engine.families.common.chat_prompts import ChatFamily, padded
from trainer_engine.families.common.flow_family import FlowFamily
from trainer_engine.families.ernie.blocks import share_modulation
from trainer_engine.families.ernie.components import ErnieComponents
from trainer_engine.families.ernie.prompts import STATES, PlainEncoder
from trainer_engine.families.ernie.spec import SPEC
from trainer_engine.families.generation import GenerationRequest, SamplerStep, StepReport
from trainer_engine.families.inputs import PromptBatch, PromptEmbedding, StepInputs
from trainer_engine.runtime.devices import Devices

TIMESTEPS = 1000
"""The network counts time from 0 for data to this for noise."""


class ErnieAutoencoder(ShuffledAutoencoder):
    """The autoencoder of Flux.2 with the statistics of ERNIE-Image.

    NOTE: the network was trained with this number in the place of the 1e-4 that the configuration of the autoencoder states, and the
    pipeline of diffusers has it too.
    """

    epsilon = 1e-5


class Ernie(FlowFamily, ChatFamily):
    """Baidu, 2026, "ERNIE-Image".

    A prompt is ``{"embeds": (T, D)}``: the states of the last layer but one of the text encoder. In the sequence of the network its tokens
    come after those of the image, which has the place in the text that is behind the last of them. The network is told how many there are.
    """

    spec = SPEC
    parts: ErnieComponents

    def __init__(self, options: TrainingOptions, devices: Devices) -> None:
        super().__init__(options, devices)
        self.parts = ErnieComponents(options.model)
        self.autoencoder = ErnieAutoencoder(lambda: self.parts.load_shuffled_vae(devices.vae), devices.device, options.autoencoder)
        self.text: PlainEncoder = PlainEncoder(self.load_text, devices.device, layers=(STATES,), token_limit=self.token_limit)

    # ---- encoders ----

    def image_fingerprint(self, hashes: FileHashes) -> str:
        """Flux.2 makes other latents with the same autoencoder."""
        return f"{super().image_fingerprint(hashes)} epsilon {ErnieAutoencoder.epsilon}"

    def load_language_model(self, dtype: torch.dtype) -> PreTrainedModel:
        return self.parts.load_language_model(dtype)

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        return self.parts.load_tokenizer()

    def collate_prompts(self, prompts: Sequence[PromptEmbedding]) -> PromptBatch:
        return padded(prompts)

    # ---- the network ----

    def load_network(self, checkpoint: Path | None = None) -> nn.Module:
        network = super().load_network(checkpoint)
        share_modulation(network)
        return network

    def token_count(self, latent_shape: Sequence[int]) -> int:
        _, height, width = latent_shape
        return height * width

    def predict(self, network: nn.Module, inputs: StepInputs) -> Tensor:
        """Return the velocity (B, C, h, w) from data to noise."""
        device, dtype, mask = self.devices.device, self.devices.network, inputs.prompts.get("mask")
        embeds = inputs.prompts["embeds"].to(device, dtype)
        # Filled on the device where no prompt is padded: numbers from the host would be copied there in every pass.
        lengths = embeds.new_full((len(embeds),), embeds.shape[1], dtype=torch.long) if mask is None else mask.to(device).sum(dim=1)
        output: Tensor = network(
            hidden_states=inputs.noisy_latents.to(device, dtype),
            timestep=TIMESTEPS * inputs.timesteps.to(device, torch.float32),
            text_bth=embeds,
            text_lens=lengths,
            return_dict=False,
        )[0]
        return output

    # ---- validation and the result ----

    @property
    def pipeline_name(self) -> str:
        return "ErnieImagePipeline"

    @torch.no_grad()
    def generate(
        self, pipeline: ErnieImagePipeline, request: GenerationRequest, *, on_step: Callable[[SamplerStep], None] | None = None
    ) -> Image.Image:
        """``request.guidance`` is classifier-free guidance with the negative prompt; 1 is none."""
        prompt, negative = (one["embeds"].to(self.devices.device, self.devices.network) for one in (request.prompt, request.negative))
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
        return self.preview(latents)


FAMILY = Ernie
