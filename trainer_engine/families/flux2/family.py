"""Flux.2 as the trainer sees it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, cast

import torch
from diffusers import Flux2KleinPipeline, Flux2Pipeline
from diffusers.pipelines.flux2.pipeline_flux2 import format_input
from diffusers.pipelines.flux2.system_messages import SYSTEM_MESSAGE
from PIL import Image
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trainer_engine.config.options import TrainingOptions
from trainer_engine.families.common.autoencoder import ShuffledAutoencoder
from trainer_engine.families.common.chat_prompts import Chat, ChatEncoder, ChatFamily
from trainer_engine.families.common.flow_family import FlowFamily
from trainer_engine.families.common.latent_cells import image_positions, packed, prompt_positions, unpacked
from trainer_engine.families.flux2.components import Flux2Components
from trainer_engine.families.flux2.spec import DEV_LAYERS, DISTILLED, KLEIN_LAYERS, SPEC
from trainer_engine.families.generation import GenerationRequest, SamplerStep, StepReport
from trainer_engine.families.inputs import PromptBatch, PromptEmbedding, StepInputs
from trainer_engine.families.modules import DiffusersNetwork, unwrap
from trainer_engine.runtime.devices import Devices

TRAINED_GUIDANCE = 1.0
"""Guidance that a network with an input for it is trained at: that of the data itself."""
STAND_IN = Image.new("RGB", (64, 64))
"""Tells a pipeline that there are references, whose latents it has; the size is the least that it takes."""
REFERENCE_DISTANCE = 10
"""Distance of each reference from the image before it, along the first axis."""
KEPT_POSITIONS = 128
"""Combinations of image sizes whose positions stay on the device."""


class Flux2(FlowFamily, ChatFamily):
    """Black Forest Labs, 2025.

    A prompt is ``{"embeds": (T, D)}``: the states of three layers of the text encoder side by side, of all T tokens. The network attends to
    the padding, whose states depend on the prompt.
    """

    spec = SPEC
    parts: Flux2Components

    def __init__(self, options: TrainingOptions, devices: Devices) -> None:
        super().__init__(options, devices)
        self.parts = Flux2Components(options.model)
        self.autoencoder = ShuffledAutoencoder(lambda: self.parts.load_shuffled_vae(devices.vae), devices.device, options.autoencoder)
        self._image_positions = lru_cache(maxsize=KEPT_POSITIONS)(positions_of)
        self._prompt_positions = lru_cache(maxsize=KEPT_POSITIONS)(prompt_positions)
        template: dict[str, Any] = {"layers": DEV_LAYERS, "as_chat": _with_system_message, "add_generation_prompt": False}
        if self.parts.is_klein:
            template = {"layers": KLEIN_LAYERS, "add_generation_prompt": True, "enable_thinking": False}
        self.text = ChatEncoder(self.load_text, devices.device, token_limit=self.token_limit, keeps_padding=True, **template)

    # ---- encoders ----

    def load_language_model(self, dtype: torch.dtype) -> PreTrainedModel:
        return self.parts.load_language_model(dtype)

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        return self.parts.load_tokenizer()

    def collate_prompts(self, prompts: Sequence[PromptEmbedding]) -> PromptBatch:
        return {"embeds": torch.stack([prompt["embeds"] for prompt in prompts])}

    # ---- the network ----

    def token_count(self, latent_shape: Sequence[int]) -> int:
        _, height, width = latent_shape
        return height * width

    def predict(self, network: nn.Module, inputs: StepInputs) -> Tensor:
        """Return the velocity of the image. References follow its tokens in the sequence; the output for their tokens is dropped."""
        device, dtype = self.devices.device, self.devices.network
        images = [image.to(device, dtype) for image in (inputs.noisy_latents, *inputs.references)]
        embeds = inputs.prompts["embeds"].to(device, dtype)
        height, width = images[0].shape[-2:]
        # Filled on the device: a number from the host would be copied there in every pass.
        guidance = images[0].new_full((len(embeds),), TRAINED_GUIDANCE) if _takes_guidance(network) else None
        output = network(
            hidden_states=packed(images),
            timestep=inputs.timesteps.to(device, torch.float32),
            guidance=guidance,
            encoder_hidden_states=embeds,
            txt_ids=self._prompt_positions(embeds.shape[1], device)[None],
            img_ids=self._image_positions(tuple((image.shape[-2], image.shape[-1]) for image in images), device)[None],
            return_dict=False,
        )[0]
        return unpacked(output, height, width)

    # ---- validation and the result ----

    @property
    def pipeline_name(self) -> str:
        return "Flux2KleinPipeline" if self.parts.is_klein else "Flux2Pipeline"

    @property
    def pipeline_class(self) -> type[Any]:
        return _KleinWithReferences if self.parts.is_klein else _DevWithReferences

    @property
    def pipeline_settings(self) -> Mapping[str, Any]:
        flavour = self.options.model.model_flavour or SPEC.default_flavour
        return {"is_distilled": flavour in DISTILLED} if self.parts.is_klein else {}

    @torch.no_grad()
    def generate(self, pipeline: Any, request: GenerationRequest, *, on_step: Callable[[SamplerStep], None] | None = None) -> Image.Image:
        """``request.guidance`` is an input of dev; in klein it is classifier-free guidance with the negative prompt."""
        device, dtype = self.devices.device, self.devices.network
        embeds = self.collate_prompts([request.prompt, request.negative])["embeds"].to(device, dtype)
        cell = SPEC.latents.scale_factor_px
        height, width = request.height // cell, request.width // cell
        pipeline.references = [reference[None].to(device, dtype) for reference in request.references]
        report = StepReport(on_step, lambda latents: unpacked(latents, height, width))
        with self.devices.autocast():
            pipeline(
                image=[STAND_IN] if pipeline.references else None,
                prompt_embeds=embeds[:1],
                **({"negative_prompt_embeds": embeds[1:]} if self.parts.is_klein else {}),
                height=request.height,
                width=request.width,
                num_inference_steps=request.steps,
                guidance_scale=request.guidance,
                generator=request.generator(),
                output_type="latent",
                callback_on_step_end=report,
            )
        return self.preview(report.latents)


def positions_of(sizes: Sequence[tuple[int, int]], device: torch.device) -> Tensor:
    """(N, 4) for what is generated and its references, of these sizes in latent cells: place of the image in time, row, column, 0."""
    return image_positions(sizes, device, apart=(REFERENCE_DISTANCE, 0))


def _with_system_message(prompt: str) -> Chat:
    chat: Chat = format_input([prompt], SYSTEM_MESSAGE)[0]
    return chat


def _takes_guidance(network: nn.Module) -> bool:
    return bool(cast("DiffusersNetwork", unwrap(network)).config.guidance_embeds)


class _References:
    """Takes the latents of its references in place of their pixels."""

    references: Sequence[Tensor] = ()
    """(1, C, h, w) each, as the network takes them."""

    def prepare_image_latents(self, images: Any, batch_size: int, generator: Any, device: torch.device, dtype: torch.dtype) -> Any:
        sizes = [(1, 1), *((one.shape[-2], one.shape[-1]) for one in self.references)]
        return packed(self.references), positions_of(sizes, device)[None, 1:]


class _KleinWithReferences(_References, Flux2KleinPipeline):  # type: ignore[misc]  # mypy does not read diffusers' types
    pass


class _DevWithReferences(_References, Flux2Pipeline):  # type: ignore[misc]
    pass


FAMILY = Flux2
