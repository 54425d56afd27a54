"""Chroma as the trainer sees it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import torch
from diffusers import ChromaPipeline
from PIL import Image
from torch import Tensor, nn

from trainer_engine.config.options import TrainingOptions
from trainer_engine.datasets.hashes import FileHashes
from trainer_engine.families.chroma.components import ChromaComponents
from trainer_engine.families.chroma.masks import MaskOfSingleBlocks, attention_mask, seen_tokens
from trainer_engine.families.chroma.spec import SPEC
from trainer_engine.families.common.autoencoder import Autoencoder
from trainer_engine.families.common.flow_family import FlowFamily
from trainer_engine.families.common.latent_squares import pack, positions_of, token_count, unpack
from trainer_engine.families.common.t5_text import T5Family, T5Text
from trainer_engine.families.generation import GenerationRequest, LateGuidance, SamplerStep, StepReport
from trainer_engine.families.inputs import PromptBatch, PromptEmbedding, StepInputs
from trainer_engine.runtime.devices import Devices

KEPT_POSITIONS = 128
"""Image sizes whose positions stay on the device."""


class Chroma(FlowFamily, T5Family):
    """Lodestone Rock, 2025.

    A prompt is ``{"embeds": (T, D), "mask": (T,)}``: T5's states of all T tokens, padding included, and 1 for the tokens of the prompt and
    the first one of the padding, which the network was trained to see. T5 does not attend to its padding.

    Training computes exactly what the transformer of diffusers computes when ``ChromaPipeline`` calls it, because that is what generates
    with the result: the mask does not hide the padding, it lowers its scores (``masks.py``), so the states of padding are stored. With
    ``t5_padding=zero`` those that the mask leaves out are zeros, and left out.
    """

    spec = SPEC
    parts: ChromaComponents

    def __init__(self, options: TrainingOptions, devices: Devices) -> None:
        super().__init__(options, devices)
        self.parts = ChromaComponents(options.model)
        self.autoencoder = Autoencoder(lambda: self.parts.load_vae(devices.vae), devices.device, options.autoencoder)
        self.text = T5Text(self.load_text, devices.device, token_limit=self.token_limit)
        self._positions = lru_cache(maxsize=KEPT_POSITIONS)(positions_of)

    # ---- encoders ----

    @property
    def stores_padding(self) -> bool:
        """Whether the states of padding are part of an embedding."""
        return self.options.model.t5_padding != "zero"

    def text_fingerprint(self, hashes: FileHashes) -> str:
        return self.encoder_fingerprint(hashes) + ("" if self.stores_padding else " without padding")

    def encode_prompts(self, prompts: Sequence[str], references: Sequence[Sequence[Tensor]] = ()) -> list[PromptEmbedding]:
        """As the pipeline does it; longer prompts are cut off."""
        states, real = self.text.encode(prompts)
        seen = seen_tokens(real)
        lengths = [self.token_limit] * len(states) if self.stores_padding else seen.sum(dim=1).tolist()
        return [{"embeds": state[:length].clone(), "mask": mask.clone()} for state, length, mask in zip(states, lengths, seen, strict=True)]

    def collate_prompts(self, prompts: Sequence[PromptEmbedding]) -> PromptBatch:
        """``embeds`` (B, T, D), zeros where padding was left out, and ``mask`` (B, T)."""
        mask = torch.stack([prompt["mask"] for prompt in prompts])
        embeds = prompts[0]["embeds"].new_zeros(*mask.shape, prompts[0]["embeds"].shape[-1])
        for row, prompt in enumerate(prompts):
            embeds[row, : len(prompt["embeds"])] = prompt["embeds"]
        return {"embeds": embeds, "mask": mask}

    # ---- the transformer ----

    def load_network(self, checkpoint: Path | None = None) -> nn.Module:
        network = super().load_network(checkpoint)
        MaskOfSingleBlocks.give(network)
        return network

    def token_count(self, latent_shape: Sequence[int]) -> int:
        return token_count(latent_shape)

    def predict(self, network: nn.Module, inputs: StepInputs) -> Tensor:
        """Return the velocity (B, C, h, w)."""
        device, dtype = self.devices.device, self.devices.network
        height, width = inputs.noisy_latents.shape[-2:]
        tokens = pack(inputs.noisy_latents.to(device, dtype))
        embeds = inputs.prompts["embeds"].to(device, dtype)
        output = network(
            hidden_states=tokens,
            timestep=inputs.timesteps.to(device, torch.float32),
            encoder_hidden_states=embeds,
            txt_ids=torch.zeros(embeds.shape[1], 3, device=device, dtype=dtype),
            img_ids=self._positions(((height, width),), device, dtype),
            attention_mask=attention_mask(inputs.prompts["mask"].to(device, dtype), tokens.shape[1]),
            return_dict=False,
        )[0]
        return unpack(output, height, width)

    # ---- validation and the result ----

    @property
    def pipeline_name(self) -> str:
        return "ChromaPipeline"

    @torch.no_grad()
    def generate(
        self, pipeline: ChromaPipeline, request: GenerationRequest, *, on_step: Callable[[SamplerStep], None] | None = None
    ) -> Image.Image:
        """``request.guidance`` is classifier-free guidance; ``true_guidance`` above 1 takes its place, and begins later."""
        device, dtype = self.devices.device, self.devices.network
        batch = self.collate_prompts([request.prompt, request.negative])
        embeds, mask = batch["embeds"].to(device, dtype), batch["mask"].to(device, dtype)
        height, width = request.height // 16 * 2, request.width // 16 * 2
        late = (request.true_guidance, request.unguided_steps)
        report = StepReport(on_step, lambda latents: unpack(latents, height, width))
        guidance = LateGuidance(*(late if request.true_guidance > 1 else (request.guidance, 0)), report)

        with self.devices.autocast():
            pipeline(
                prompt_embeds=embeds[:1],
                prompt_attention_mask=mask[:1],
                negative_prompt_embeds=embeds[1:],
                negative_prompt_attention_mask=mask[1:],
                height=request.height,
                width=request.width,
                num_inference_steps=request.steps,
                guidance_scale=guidance,
                generator=request.generator(),
                output_type="latent",
                callback_on_step_end=report,
            )
        return self.preview(report.latents)


FAMILY = Chroma
