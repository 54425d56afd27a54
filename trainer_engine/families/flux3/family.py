"""FLUX.3 as the trainer sees it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any, cast

import torch
from diffusers import ClassifierFreeGuidance
from PIL import Image
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trainer_engine.config.options import TrainingOptions
from trainer_engine.families.common.autoencoder import ShuffledAutoencoder
from trainer_engine.families.common.chat_prompts import ChatFamily
from trainer_engine.families.common.flow_family import FlowFamily
from trainer_engine.families.common.latent_cells import image_positions, packed, prompt_positions, unpacked
from trainer_engine.families.flux3.blocks import make_denoising
from trainer_engine.families.flux3.components import Flux3Components
from trainer_engine.families.flux3.spec import SPEC, TEXT_LAYERS
from trainer_engine.families.flux3.windows import WindowEncoder, image_places, in_windows, prompt_places
from trainer_engine.families.generation import GenerationRequest, SamplerStep
from trainer_engine.families.inputs import PromptBatch, PromptEmbedding, StepInputs
from trainer_engine.families.modules import DiffusersNetwork, unwrap
from trainer_engine.runtime.devices import Devices

POSITION_SCALE = 0.5
"""Distance of two rows or columns of an image, as the network was trained."""
KEPT_POSITIONS = 128
"""Combinations of image sizes whose positions stay on the device."""
positions_of = partial(image_positions, apart=(0, -1), scale=POSITION_SCALE)
"""Those of the image that is generated, whose number is 0, or of references, which count from 1."""


class Flux3(FlowFamily, ChatFamily):
    """Black Forest Labs, 2026.

    A prompt is ``{"embeds": (T, D)}``: the states of eight layers of the text encoder side by side, of its tokens and of one token of
    padding, which stands for all of them. The network attends to the padding in the window of the prompt.
    """

    spec = SPEC
    parts: Flux3Components
    may_skip = True  # a batch without references passes by the blocks for them

    def __init__(self, options: TrainingOptions, devices: Devices) -> None:
        super().__init__(options, devices)
        self.parts = Flux3Components(options.model)
        self.autoencoder = ShuffledAutoencoder(lambda: self.parts.load_shuffled_vae(devices.vae), devices.device, options.autoencoder)
        self._image_positions = lru_cache(maxsize=KEPT_POSITIONS)(positions_of)
        self._prompt_positions = lru_cache(maxsize=KEPT_POSITIONS)(prompt_positions)
        self.text = WindowEncoder(
            self.load_text, devices.device, layers=TEXT_LAYERS, token_limit=self.token_limit, add_generation_prompt=True
        )

    # ---- encoders ----

    def load_language_model(self, dtype: torch.dtype) -> PreTrainedModel:
        return self.parts.load_language_model(dtype)

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        return self.parts.load_tokenizer()

    def collate_prompts(self, prompts: Sequence[PromptEmbedding]) -> PromptBatch:
        return in_windows([prompt["embeds"] for prompt in prompts], self.token_limit)

    # ---- the network ----

    def token_count(self, latent_shape: Sequence[int]) -> int:
        _, height, width = latent_shape
        return height * width

    def predict(self, network: nn.Module, inputs: StepInputs) -> Tensor:
        """Return the velocity of the image. Prompt and references are at t = 0.

        A flow map is trained as what it is between a noise level and the same one: the velocity there.
        """
        device, dtype = self.devices.device, self.devices.network
        latents = inputs.noisy_latents.to(device, dtype)
        references = [reference.to(device, dtype) for reference in inputs.references]
        embeds, hidden = inputs.prompts["embeds"].to(device, dtype), inputs.prompts.get("hidden")
        height, width = latents.shape[-2:]
        time = inputs.timesteps.to(device, torch.float32)
        positions = partial(self._positions, hidden=None if hidden is None else hidden.to(device))
        output = network(
            hidden_states=packed([latents]),
            encoder_hidden_states=embeds,
            timestep=time,
            img_ids=positions([latents]),
            txt_ids=prompt_places(self._prompt_positions(embeds.shape[1], device), hidden),
            image_cond_hidden_states=packed(references) if references else None,
            image_cond_ids=positions(references, first=1) if references else None,
            target_timestep=time if _is_flow_map(network) else None,
            return_dict=False,
        )[0]
        return unpacked(output, height, width)

    def _positions(self, images: Sequence[Tensor], *, hidden: Tensor | None, first: int = 0) -> Tensor:
        sizes = tuple((image.shape[-2], image.shape[-1]) for image in images)
        return image_places(self._image_positions(sizes, self.devices.device, first=first), hidden)

    # ---- validation and the result ----

    @property
    def pipeline_name(self) -> str:
        return "Flux3DistilledModularPipeline" if self.parts.is_flow_map else "Flux3ModularPipeline"

    def make_pipeline(self, network: nn.Module, *, sampler: str | None = None, spacing: str | None = None) -> Any:
        pipeline = make_denoising(is_flow_map=_is_flow_map(network))
        pipeline.update_components(transformer=network, scheduler=self.parts.make_scheduler(sampler))
        return pipeline

    @torch.no_grad()
    def generate(self, pipeline: Any, request: GenerationRequest, *, on_step: Callable[[SamplerStep], None] | None = None) -> Image.Image:
        """``request.guidance`` is classifier-free guidance with the negative prompt; a flow map has none."""
        device, dtype = self.devices.device, self.devices.network
        prompt, negative = (self.collate_prompts([one])["embeds"].to(device, dtype) for one in (request.prompt, request.negative))
        references = [reference[None].to(device, dtype) for reference in request.references]
        cell = SPEC.latents.scale_factor_px
        unguided = {}
        if not _is_flow_map(pipeline.transformer):
            pipeline.update_components(guider=ClassifierFreeGuidance(guidance_scale=request.guidance))
            unguided = {"negative_prompt_embeds": negative} if pipeline.requires_unconditional_embeds else {}

        def report(number: int, timestep: float, tokens: Tensor) -> None:
            if on_step is not None:
                on_step(SamplerStep(number, timestep, unpacked(tokens, request.height // cell, request.width // cell)))

        with self.devices.autocast():
            latents = pipeline(
                prompt_embeds=prompt,
                **unguided,
                **({"image_cond_latents": references} if references else {}),
                height=request.height,
                width=request.width,
                num_inference_steps=request.steps,
                generator=request.generator(),
                on_tokens=report,
                output="latents",
            )
        return self.preview(latents)

    @property
    def saved_settings(self) -> Mapping[str, Any]:
        return self.parts.components_elsewhere()


def _is_flow_map(network: nn.Module) -> bool:
    return bool(cast("DiffusersNetwork", unwrap(network)).config.flow_map)


FAMILY = Flux3
