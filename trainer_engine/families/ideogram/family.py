"""Ideogram 4 as the trainer sees it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trainer_engine.config.options import TrainingOptions
from trainer_engine.config.options.model import ObjectiveOptions
from trainer_engine.datasets.hashes import FileHashes
from trainer_engine.families.common.chat_prompts import ChatFamily, padded
from trainer_engine.families.common.flow_family import FlowFamily
from trainer_engine.families.common.latent_cells import packed, unpacked
from trainer_engine.families.generation import GenerationRequest, SamplerStep, StepReport
from trainer_engine.families.ideogram.components import IdeogramComponents
from trainer_engine.families.ideogram.options import IdeogramOptions
from trainer_engine.families.ideogram.pipeline import EmbeddedPipeline, Unguided
from trainer_engine.families.ideogram.prompts import LayeredEncoder
from trainer_engine.families.ideogram.sequence import Ideogram4Autoencoder, layout, masked, velocity
from trainer_engine.families.ideogram.spec import SPEC, UNCONDITIONAL
from trainer_engine.families.inputs import STORED, PromptBatch, PromptEmbedding, StepInputs
from trainer_engine.objectives.flow_matching import GROWTH, SQUARE_ROOT, UNSHIFTED
from trainer_engine.runtime.devices import Devices

TOKENS_OF_512 = 1024
"""Tokens of an image of 512 x 512 pixels, at which the schedule has its mean."""
KEPT_LAYOUTS = 128
"""Combinations of prompt lengths and image sizes whose places stay on the device."""


class Ideogram4(FlowFamily, ChatFamily):
    """Ideogram, 2026, "Ideogram 4".

    A prompt is ``{"embeds": (T, D)}``: the states of thirteen layers of Qwen3-VL for each token of a caption in JSON. The network counts
    time from noise to data, and its output points there.
    """

    spec = SPEC
    parts: IdeogramComponents

    def __init__(self, options: TrainingOptions, devices: Devices) -> None:
        super().__init__(options, devices)
        self.own = options.of_family(IdeogramOptions)
        self.parts = IdeogramComponents(options.model)
        self.autoencoder = Ideogram4Autoencoder(lambda: self.parts.load_shuffled_vae(devices.vae), devices.device, options.autoencoder)
        self.text: LayeredEncoder = LayeredEncoder(
            self.load_text, devices.device, token_limit=self.token_limit, writes_json=self.own.ideogram_auto_json
        )
        self._layout = lru_cache(maxsize=KEPT_LAYOUTS)(layout)
        self._unconditional: nn.Module | None = None

    # ---- encoders ----

    def load_language_model(self, dtype: torch.dtype) -> PreTrainedModel:
        return self.parts.load_language_model(dtype)

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        return self.parts.load_tokenizer()

    def text_fingerprint(self, hashes: FileHashes) -> str:
        return f"{super().text_fingerprint(hashes)} json={self.own.ideogram_auto_json} {STORED}"

    def collate_prompts(self, prompts: Sequence[PromptEmbedding]) -> PromptBatch:
        return padded(prompts)

    def free_encoders(self) -> None:
        self._unconditional = None
        super().free_encoders()

    def release_encoders(self) -> None:
        self._unconditional = None
        super().release_encoders()

    # ---- the network ----

    def token_count(self, latent_shape: Sequence[int]) -> int:
        _, height, width = latent_shape
        return height * width

    def predict(self, network: nn.Module, inputs: StepInputs) -> Tensor:
        """Return the velocity (B, C, h, w) from data to noise."""
        device, dtype, mask = self.devices.device, self.devices.network, inputs.prompts.get("mask")
        latents, embeds = inputs.noisy_latents.to(device, dtype), inputs.prompts["embeds"].to(device, dtype)
        height, width = latents.shape[-2:]
        places = self._layout(embeds.shape[1], height, width, device)
        places = masked(places, None if mask is None else mask.to(device), len(embeds))
        time = (1 - inputs.timesteps.to(device, torch.float32)).to(dtype)
        return unpacked(-velocity(network, packed([latents]), embeds, time, places), height, width)

    # ---- the noise schedule ----

    @property
    def objective_options(self) -> ObjectiveOptions:
        """The distribution of timesteps of the published sampler, unless options select another one."""
        return self.options.objective.model_copy(update={"flow_sigmoid_scale": self.own.ideogram_schedule_std})

    def scheduler_config(self) -> Mapping[str, Any]:
        """The base model's, with the growth of the shift: exp(mu) times the square root of how many times as many tokens there are."""
        unshifted = TOKENS_OF_512 * math.exp(-2 * self.own.ideogram_schedule_mu)
        return MappingProxyType({**super().scheduler_config(), GROWTH: SQUARE_ROOT, UNSHIFTED: unshifted})

    # ---- validation and the result ----

    @property
    def pipeline_name(self) -> str:
        return "Ideogram4Pipeline"

    @property
    def pipeline_class(self) -> type[Any]:
        return EmbeddedPipeline

    def pipeline_parts(self, network: nn.Module, sampler: str | None) -> dict[str, Any]:
        other = self._second_network() if self.own.ideogram_load_unconditional_transformer else Unguided(network)
        return {**super().pipeline_parts(network, sampler), UNCONDITIONAL: other}

    def _second_network(self) -> nn.Module:
        """The network without prompts on its device, quantised as the trained one is; loaded at the first call after a validation."""
        if self._unconditional is None:
            network = self.parts.load_unconditional(self.devices.frozen).eval().requires_grad_(False)
            precision = self.options.precision.base_model_precision
            self._unconditional = self.place(network, precision, part=UNCONDITIONAL, in_autocast=True).to(self.devices.device)
        return self._unconditional

    @torch.no_grad()
    def generate(
        self, pipeline: EmbeddedPipeline, request: GenerationRequest, *, on_step: Callable[[SamplerStep], None] | None = None
    ) -> Image.Image:
        """``request.guidance`` counts from the unguided prediction, so that 1 is no guidance."""
        cell = SPEC.latents.scale_factor_px
        height, width = request.height // cell, request.width // cell
        pipeline.embeds = request.prompt["embeds"]
        if isinstance(pipeline.unconditional_transformer, Unguided):
            pipeline.unconditional_transformer.embeds = request.negative["embeds"]
        report = StepReport(on_step, lambda latents: unpacked(latents, height, width))
        with self.devices.autocast():
            pipeline(
                prompt="",
                max_sequence_length=len(pipeline.embeds),
                guidance_scale=request.guidance,
                guidance_schedule=None,
                height=request.height,
                width=request.width,
                num_inference_steps=request.steps,
                generator=request.generator(),
                output_type="latent",
                callback_on_step_end=report,
            )
        return self.preview(report.latents)


FAMILY = Ideogram4
