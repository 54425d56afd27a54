"""LongCat-Image as the trainer sees it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from trainer_engine.config.options import TrainingOptions
from trainer_engine.families.common.autoencoder import Autoencoder
from trainer_engine.families.common.flow_family import FlowFamily
from trainer_engine.families.common.latent_squares import packed, token_count, unpack
from trainer_engine.families.common.qwen_vl import SeeingFamily
from trainer_engine.families.common.references import Given, beside
from trainer_engine.families.generation import GenerationRequest, SamplerStep, StepReport
from trainer_engine.families.inputs import PromptBatch, PromptEmbedding, StepInputs
from trainer_engine.families.longcat_image.components import LongCatComponents
from trainer_engine.families.longcat_image.pipeline import GENERATED, EmbeddedPipeline, image_positions, prompt_positions
from trainer_engine.families.longcat_image.prompts import DESCRIBE, EDIT, QuotingEncoder
from trainer_engine.families.longcat_image.spec import PROCESSOR, SPEC
from trainer_engine.runtime.devices import Devices

KEPT_POSITIONS = 128
"""Combinations of image sizes whose positions stay on the device."""


class LongCatImage(FlowFamily, SeeingFamily):
    """Meituan, 2025, "LongCat-Image Technical Report".

    A prompt is ``{"embeds": (T, D)}``: the last states of Qwen2.5-VL for the prompt and its padding, to which the network attends. If the
    flavour edits, Qwen2.5-VL looks at the reference too, whose states come first. The image begins behind the prompt, along both axes of
    the positions, and a reference lies at the same place with another number.
    """

    spec = SPEC
    parts: LongCatComponents

    def __init__(self, options: TrainingOptions, devices: Devices) -> None:
        super().__init__(options, devices)
        self.parts = LongCatComponents(options.model)
        self.autoencoder = Autoencoder(lambda: self.parts.load_vae(devices.vae), devices.device, options.autoencoder)
        self._image_positions = lru_cache(maxsize=KEPT_POSITIONS)(image_positions)
        self._prompt_positions = lru_cache(maxsize=KEPT_POSITIONS)(prompt_positions)
        self.text: QuotingEncoder = QuotingEncoder(
            self.load_text,
            devices.device,
            task=self.task,
            token_limit=self.token_limit,
            load_image_processor=self.parts.load_image_processor,
        )

    @property
    def task(self) -> str:
        """What the text encoder is asked to do."""
        return EDIT if self.parts.edits else DESCRIBE

    # ---- encoders ----

    def collate_prompts(self, prompts: Sequence[PromptEmbedding]) -> PromptBatch:
        """``embeds`` (B, T, D). The references of a batch have one size, so that as many tokens are theirs in each prompt."""
        return {"embeds": torch.stack([prompt["embeds"] for prompt in prompts])}

    # ---- the network ----

    def token_count(self, latent_shape: Sequence[int]) -> int:
        return token_count(latent_shape)

    def predict(self, network: nn.Module, inputs: StepInputs) -> Tensor:
        """Return the velocity (B, C, h, w). References follow the image's tokens in the sequence; the output for theirs is dropped."""
        device, dtype = self.devices.device, self.devices.network
        images = [image.to(device, dtype) for image in (inputs.noisy_latents, *inputs.references)]
        embeds = inputs.prompts["embeds"].to(device, dtype)
        height, width = images[0].shape[-2:]
        output: Tensor = network(
            hidden_states=packed(images),
            timestep=inputs.timesteps.to(device, torch.float32),
            encoder_hidden_states=embeds,
            txt_ids=self._prompt_positions(embeds.shape[1], device),
            img_ids=self._image_positions(tuple((image.shape[-2], image.shape[-1]) for image in images), embeds.shape[1], device),
            return_dict=False,
        )[0]
        return unpack(output[:, : token_count(images[0].shape[1:])], height, width)

    # ---- validation and the result ----

    @property
    def pipeline_name(self) -> str:
        return "LongCatImageEditPipeline" if self.parts.edits else "LongCatImagePipeline"

    @property
    def pipeline_class(self) -> type[Any]:
        return EmbeddedPipeline

    def pipeline_parts(self, network: nn.Module, sampler: str | None) -> dict[str, Any]:
        return {**super().pipeline_parts(network, sampler), PROCESSOR: None}

    @torch.no_grad()
    def generate(
        self, pipeline: EmbeddedPipeline, request: GenerationRequest, *, on_step: Callable[[SamplerStep], None] | None = None
    ) -> Image.Image:
        """``request.guidance`` is classifier-free guidance with the negative prompt; 1 is none.

        The pipeline that edits differs from this one in the tokens of its reference, which it scales for itself, and in that it leaves
        the norm of a guided prediction as it is.
        """
        device, dtype, cell = self.devices.device, self.devices.network, SPEC.latents.scale_factor_px
        height, width = request.height // cell, request.width // cell
        prompt, negative = (one["embeds"].to(device, dtype) for one in (request.prompt, request.negative))
        references = [reference[None].to(device, dtype) for reference in request.references]
        sizes = tuple((reference.shape[-2], reference.shape[-1]) for reference in references)
        report = StepReport(on_step, lambda latents: unpack(latents, height, width))
        pipeline.tokenizer_max_length = len(prompt)  # the image begins behind them

        def placed(given: Given) -> Given:
            behind = self._image_positions(sizes, len(prompt), device, GENERATED + 1)
            return {"img_ids": torch.cat([given["img_ids"], behind])}

        with self.devices.autocast(), pipeline.reporting(report), beside(pipeline.transformer, references, placed):
            pipeline(
                [prompt],
                negative_prompt=[negative],
                height=request.height,
                width=request.width,
                num_inference_steps=request.steps,
                guidance_scale=request.guidance,
                generator=request.generator(),
                output_type="latent",
                enable_cfg_renorm=not self.parts.edits,
                enable_prompt_rewrite=False,
            )
        return self.preview(report.latents)


FAMILY = LongCatImage
