"""Qwen-Image 2.1 as the trainer sees it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trainer_engine.config.options import TrainingOptions
from trainer_engine.families.common.chat_prompts import ChatFamily
from trainer_engine.families.common.flow_family import FlowFamily
from trainer_engine.families.common.latent_cells import packed, unpacked
from trainer_engine.families.generation import GenerationRequest, SamplerStep, StepReport
from trainer_engine.families.inputs import PromptBatch, PromptEmbedding, StepInputs
from trainer_engine.families.qwen_image_21.components import QwenImage21Components, RgbaAutoencoder
from trainer_engine.families.qwen_image_21.pipeline import EmbeddedPipeline, shapes_of
from trainer_engine.families.qwen_image_21.prompts import PromptEncoder
from trainer_engine.families.qwen_image_21.spec import DISTILLED, SPEC, TURBO_SIGMAS
from trainer_engine.runtime.devices import Devices

SLOT_TOKENS = 4
"""Tokens of the network in the place of one token of the text encoder: 2 x 2 latent cells."""


class QwenImage21(FlowFamily, ChatFamily):
    """Qwen team, 2026, "Qwen-Image-2.1".

    The tokens of prompt and images are one sequence. References stand where the text encoder saw them, and the image that is generated at
    the end; text attends to what is before it, an image to itself as well. Only the tokens at the end know the noise level: the others
    are modulated as at time 0.

    NOTE: the positions of the image follow from the number of tokens before it, padding included, and a batch of the network has one
    layout. Each sample is a pass of its own, so that it is predicted as the pipeline predicts it alone.
    """

    spec = SPEC
    parts: QwenImage21Components

    def __init__(self, options: TrainingOptions, devices: Devices) -> None:
        super().__init__(options, devices)
        self.parts = QwenImage21Components(options.model)
        self.autoencoder: RgbaAutoencoder = RgbaAutoencoder(
            lambda: self.parts.load_rgba_vae(devices.vae), devices.device, options.autoencoder
        )
        self.text: PromptEncoder = PromptEncoder(
            self.load_text, devices.device, token_limit=self.token_limit, load_image_processor=self.parts.load_image_processor
        )

    @property
    def sigmas(self) -> tuple[float, ...]:
        """The noise levels of the flavour's own sampler steps; empty for those of the schedule."""
        return TURBO_SIGMAS if self.options.model.model_flavour in DISTILLED else ()

    # ---- encoders ----

    def load_language_model(self, dtype: torch.dtype) -> PreTrainedModel:
        model: PreTrainedModel = self.parts.load_language_model(dtype)
        return model

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        return self.parts.load_tokenizer()

    @property
    def prompts_see_references(self) -> bool:
        return True

    def encode_prompts(self, prompts: Sequence[str], references: Sequence[Sequence[Tensor]] = ()) -> list[PromptEmbedding]:
        if not any(references):
            return super().encode_prompts(prompts)
        found = zip(prompts, references, strict=True)  # each alone: their references may have any sizes
        return [self.text.encode_with(prompt, seen) if seen else {"embeds": self.text.encode([prompt])[0]} for prompt, seen in found]

    def collate_prompts(self, prompts: Sequence[PromptEmbedding]) -> PromptBatch:
        """``embeds.<n>`` (S, D) and ``slots.<n>`` (S,) for each prompt: nothing is padded, and tokens of images are zeros."""
        batch: PromptBatch = {}
        for number, prompt in enumerate(prompts):
            batch[f"embeds.{number}"], batch[f"slots.{number}"] = self.text.with_slots(prompt)
        return batch

    # ---- the network ----

    def token_count(self, latent_shape: Sequence[int]) -> int:
        _, height, width = latent_shape
        return height * width

    def predict(self, network: nn.Module, inputs: StepInputs) -> Tensor:
        """Return the velocity (B, C, h, w)."""
        device, dtype = self.devices.device, self.devices.network
        images = [image.to(device, dtype) for image in (*inputs.references, inputs.noisy_latents)]
        times = inputs.timesteps.to(device, torch.float32)
        found = []
        for number in range(len(times)):
            row, prompt = slice(number, number + 1), {name: inputs.prompts[f"{name}.{number}"] for name in ("embeds", "slots")}
            found.append(self._predicted(network, [image[row] for image in images], times[row], prompt))
        return torch.cat(found)

    def _predicted(self, network: nn.Module, images: Sequence[Tensor], time: Tensor, prompt: PromptEmbedding) -> Tensor:
        """The velocity (1, C, h, w) of the last image, which the references come before."""
        height, width = images[-1].shape[-2:]
        embeds, slots = prompt["embeds"], prompt["slots"]
        own = slots.new_ones(height * width // SLOT_TOKENS)
        output: Tensor = network(
            hidden_states=packed(images),
            encoder_hidden_states=embeds[None].to(images[-1]),
            timestep=time,
            img_shapes=[shapes_of(images)],
            img_mask=torch.cat([slots, own])[None].to(self.devices.device),
            return_dict=False,
        )[0]
        return unpacked(output[:, -height * width :], height, width)

    # ---- validation and the result ----

    @property
    def pipeline_name(self) -> str:
        return "QwenImage21Pipeline"

    @property
    def pipeline_class(self) -> type[Any]:
        return EmbeddedPipeline

    @property
    def saved_settings(self) -> Mapping[str, Any]:
        return {"sample_sigmas": list(self.sigmas)} if self.sigmas else {}

    @torch.no_grad()
    def generate(
        self, pipeline: EmbeddedPipeline, request: GenerationRequest, *, on_step: Callable[[SamplerStep], None] | None = None
    ) -> Image.Image:
        """``request.guidance`` is classifier-free guidance with the negative prompt; 1 is none."""
        device, dtype, cell = self.devices.device, self.devices.network, SPEC.latents.scale_factor_px
        height, width = request.height // cell, request.width // cell
        wanted = {"prompt_embeds": request.prompt, **({"negative_prompt_embeds": request.negative} if request.guidance > 1 else {})}
        batches = {name: self.collate_prompts([prompt]) for name, prompt in wanted.items()}
        embeds = {name: batch["embeds.0"][None].to(device, dtype) for name, batch in batches.items()}
        pipeline.slots = [(embeds[name], batch["slots.0"][None].to(device)) for name, batch in batches.items()]
        report = StepReport(on_step, lambda latents: unpacked(latents, height, width))
        references = [reference[None].to(device, dtype) for reference in request.references]
        with self.devices.autocast(), pipeline.looking_at(references):
            pipeline(
                **embeds,
                true_cfg_scale=request.guidance,
                height=request.height,
                width=request.width,
                num_inference_steps=request.steps,
                sigmas=list(self.sigmas) if request.steps == len(self.sigmas) else None,
                generator=request.generator(),
                output_type="latent",
                callback_on_step_end=report,
            )
        return self.preview(report.latents)


FAMILY = QwenImage21
