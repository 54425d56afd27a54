"""Wan as the trainer sees it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import WanImageToVideoPipeline, WanPipeline
from diffusers.pipelines.wan.pipeline_wan import prompt_clean
from diffusers.video_processor import VideoProcessor
from PIL import Image
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, UMT5EncoderModel

from trainer_engine.config.options import TrainingOptions
from trainer_engine.datasets.hashes import FileHashes
from trainer_engine.families.base import Family
from trainer_engine.families.common.autoencoder import ClipAutoencoder
from trainer_engine.families.common.pipeline_folder import plan_of, write_pipeline
from trainer_engine.families.common.skipped_layers import layers_skipped
from trainer_engine.families.generation import GenerationRequest, SamplerStep, StepReport
from trainer_engine.families.inputs import Conditions, PromptBatch, PromptEmbedding, StepInputs
from trainer_engine.families.modules import free_device_memory
from trainer_engine.families.wan.components import WanComponents
from trainer_engine.families.wan.first_frame import (
    EMBEDDING,
    LATENTS,
    ExactEncoding,
    FrameEncoder,
    first_of,
    fitted,
    masked,
    with_blank_frames,
)
from trainer_engine.families.wan.spec import SPEC
from trainer_engine.runtime.devices import Devices

TIMESTEPS = 1000
"""The network counts noise levels up to this; sigma is in [0, 1]."""
PATCH_CELLS = 2
"""Latent cells along the height and the width of a token."""


class Wan(Family):
    """Wan Team, 2025, "Wan: Open and Advanced Large-Scale Video Generative Models".

    Latents are (C, f, h, w); an image is a clip of one frame. A prompt is ``{"embeds": (T, D)}``: the UMT5 states of its real tokens; the
    network takes them followed by zeros. A flavour that animates also takes the first frame of a clip (``first_frame.py``).
    """

    spec = SPEC
    parts: WanComponents

    def __init__(self, options: TrainingOptions, devices: Devices) -> None:
        super().__init__(options, devices)
        self.parts = WanComponents(options.model)
        self.autoencoder = ClipAutoencoder(lambda: self.parts.load_video_vae(devices.vae), devices.device, options.autoencoder)
        self.frames = FrameEncoder(lambda: self.parts.load_image_encoder(devices.text), self.parts.load_image_processor, devices.device)
        self._text: tuple[UMT5EncoderModel, PreTrainedTokenizerBase] | None = None

    # ---- encoders ----

    def image_fingerprint(self, hashes: FileHashes) -> str:
        if not self.animates:
            return super().image_fingerprint(hashes)
        seen_by = " ".join(self.parts.find(name).fingerprint(hashes) for name in ("image_encoder", "image_processor"))
        return f"{super().image_fingerprint(hashes)} first frame {seen_by} {self.devices.text}"

    def text_fingerprint(self, hashes: FileHashes) -> str:
        return self.encoder_fingerprint(hashes)

    def encode_images(self, pixels: Tensor, *, exact: bool = False) -> Tensor:
        """Images (B, 3, H, W) -> (B, C, 1, h, w); clips (B, 3, T, H, W) -> (B, C, (T - 1) / 4 + 1, h, w)."""
        return self.autoencoder.encode(pixels if pixels.dim() == 5 else pixels.unsqueeze(2), exact=exact)

    @property
    def caches_conditions(self) -> bool:
        return self.animates

    def encode_conditions(self, pixels: Tensor, *, exact: bool = False) -> Conditions:
        """The latents of each first frame with blank frames behind it, and what the image encoder makes of the frame."""
        with self.autoencoder.alone():
            return {
                LATENTS: self.autoencoder.encode(with_blank_frames(pixels), exact=exact),
                EMBEDDING: self.frames.encode(first_of(pixels), exact=exact),
            }

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str], references: Sequence[Sequence[Tensor]] = ()) -> list[PromptEmbedding]:
        """Cleaned as the pipeline cleans them; longer prompts are cut off."""
        text = self._text
        if text is None:
            encoder = self.parts.load_text_encoder(self.devices.text)
            self.place(encoder, self.options.precision.text_encoder_1_precision, part="text_encoder")
            self._text = text = encoder, self.parts.load_tokenizer()
        encoder, tokenizer = text
        tokens = tokenizer(
            [prompt_clean(prompt) for prompt in prompts],
            padding="max_length",
            max_length=self.token_limit,
            truncation=True,
            return_tensors="pt",
        ).to(self.devices.device)
        states = encoder(tokens.input_ids, tokens.attention_mask).last_hidden_state.cpu()
        lengths = tokens.attention_mask.sum(dim=1).tolist()
        return [{"embeds": state[:length].clone()} for state, length in zip(states, lengths, strict=True)]

    def free_encoders(self) -> None:
        self.autoencoder.free()
        self.frames.free()
        self._text = None
        free_device_memory(self.devices.device)

    def collate_prompts(self, prompts: Sequence[PromptEmbedding]) -> PromptBatch:
        """``embeds`` (B, ``token_limit``, D): zeros after the last token, which the network attends to."""
        embeds = [prompt["embeds"] for prompt in prompts]
        padded = embeds[0].new_zeros(len(embeds), self.token_limit, embeds[0].shape[-1])
        for row, embed in enumerate(embeds):
            padded[row, : len(embed)] = embed
        return {"embeds": padded}

    # ---- the network ----

    def load_component(self, name: str, dtype: torch.dtype, folder: Path | None = None) -> nn.Module:
        network: nn.Module = self.parts.load_transformer(dtype, folder)
        return network

    def token_count(self, latent_shape: Sequence[int]) -> int:
        _, frames, height, width = latent_shape
        return frames * height * width // PATCH_CELLS**2

    def predict(self, network: nn.Module, inputs: StepInputs) -> Tensor:
        """Return the velocity (B, C, f, h, w)."""
        device, dtype = self.devices.device, self.devices.network
        latents, further = inputs.noisy_latents.to(device, dtype), {}
        if self.animates:
            frame = inputs.conditions[LATENTS].to(device, dtype)
            latents = torch.cat([latents, masked(frame)], dim=1)
            further = {"encoder_hidden_states_image": inputs.conditions[EMBEDDING].to(device, dtype)}
        output: Tensor = network(
            hidden_states=latents,
            timestep=inputs.timesteps.to(device, torch.float32) * TIMESTEPS,
            encoder_hidden_states=inputs.prompts["embeds"].to(device, dtype),
            return_dict=False,
            **further,
        )[0]
        return output

    # ---- validation and the result ----

    @property
    def pipeline_name(self) -> str:
        return "WanImageToVideoPipeline" if self.animates else "WanPipeline"

    def make_pipeline(
        self, network: nn.Module, *, sampler: str | None = None, spacing: str | None = None
    ) -> WanPipeline | WanImageToVideoPipeline:
        parts: dict[str, Any] = {"tokenizer": None, "text_encoder": None, "vae": self.autoencoder.model, "transformer": network}
        parts["scheduler"] = self.parts.make_scheduler(sampler)
        if self.animates:
            parts["image_encoder"], parts["image_processor"] = self.frames.parts
        pipeline = ExactEncoding(**parts) if self.animates else WanPipeline(**parts)
        if self.animates:
            pipeline.alone = self.autoencoder.alone
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    @torch.no_grad()
    def generate(
        self,
        pipeline: WanPipeline | WanImageToVideoPipeline,
        request: GenerationRequest,
        *,
        on_step: Callable[[SamplerStep], None] | None = None,
    ) -> Image.Image | list[Image.Image]:
        """An image is a clip of one frame."""
        shown = {"image": fitted(request.first_frame, request.width, request.height)} if request.first_frame else {}
        embeds = self.collate_prompts([request.prompt, request.negative])["embeds"].to(self.devices.device)

        network = pipeline.transformer
        with self.devices.autocast(), layers_skipped(network, network.blocks, request.skipped_layers, request.steps):
            latents = pipeline(
                prompt_embeds=embeds[:1],
                negative_prompt_embeds=embeds[1:],
                height=request.height,
                width=request.width,
                num_frames=request.frames,
                num_inference_steps=request.steps,
                guidance_scale=request.guidance,
                generator=request.generator(),
                output_type="latent",
                callback_on_step_end=StepReport(on_step),
                **shown,
            ).frames
        frames = self._decoded(latents)
        return frames if request.frames > 1 else frames[0]

    def preview(self, latents: Tensor) -> Image.Image:
        """The first latent frame is the first frame: the autoencoder decodes it without those that follow."""
        with torch.autocast(self.devices.device.type, enabled=False):
            return self._decoded(latents[:, :, :1])[0]

    def _decoded(self, latents: Tensor) -> list[Image.Image]:
        """The frames that scaled latents (1, C, f, h, w) show. Raises ImageNotFinite."""
        frames: list[Image.Image] = VideoProcessor().postprocess_video(self.autoencoder.decode(latents), output_type="pil")[0]
        return frames

    def save_pipeline(self, folder: Path, network: nn.Module) -> None:
        write_pipeline(folder, plan_of(self, network, self.parts.copied(animates=self.animates), self.parts.make_scheduler()), self.options)


FAMILY = Wan
