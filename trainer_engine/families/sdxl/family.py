"""Stable Diffusion XL as the trainer sees it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import SchedulerMixin
from PIL import Image
from torch import nn
from transformers import CLIPTokenizer

from trainer_engine.config.family_parts import tokenizer_of
from trainer_engine.config.options import TrainingOptions
from trainer_engine.config.options.model import ObjectiveOptions
from trainer_engine.config.stages import OtherStage, other_stage
from trainer_engine.families.common.clip_text import ClipEncoder, ClipOutput, ClipStates
from trainer_engine.families.common.pipeline_folder import CopiedPart
from trainer_engine.families.common.sized_unet import SizedUNetFamily
from trainer_engine.families.common.stages import OtherNetwork, counted, other_network
from trainer_engine.families.common.unet import ClipUNetFamily
from trainer_engine.families.generation import GenerationRequest, SamplerStep
from trainer_engine.families.inputs import PromptBatch, SampleFacts
from trainer_engine.families.sdxl.components import SdxlComponents
from trainer_engine.families.sdxl.options import SdxlOptions
from trainer_engine.families.sdxl.spec import REFINERS, SPEC
from trainer_engine.runtime.devices import Devices

IMAGE_PIPELINE = "StableDiffusionXLImg2ImgPipeline"


@dataclass(frozen=True)
class TwoPipelines:
    """The pipelines of the trained network and of the other one, which make an image together."""

    own: Any
    other: Any


class StableDiffusionXL(ClipUNetFamily, SizedUNetFamily):
    """Podell et al., 2023, "SDXL: Improving Latent Diffusion Models for High-Resolution Image Synthesis".

    A prompt is ``{"embeds": (77, D1 + D2), "pooled": (P,)}``: the penultimate states of both encoders side by side, and the projected
    pooled prompt of the second.

    The refiner has the second encoder alone, and five time ids: an aesthetic score takes the place of the size in training.
    """

    spec = SPEC
    parts: SdxlComponents

    def __init__(self, options: TrainingOptions, devices: Devices) -> None:
        super().__init__(options, devices)
        self.is_refiner = options.model.model_flavour in REFINERS
        self.aesthetic_score = options.of_family(SdxlOptions).data_aesthetic_score
        self.stage = other_stage(options, self.spec)
        self.continues = self.stage is not None and self.stage.is_first
        """Whether its validation images begin with the latents of another network."""

    @property
    def objective_options(self) -> ObjectiveOptions:
        """All of the noise schedule for a refiner that is to become a model of its own."""
        chosen, uses_all = self.options.objective, self.options.of_family(SdxlOptions).sdxl_refiner_uses_full_range
        return chosen.model_copy(update={"refiner_training": False}) if self.is_refiner and uses_all else chosen

    @cached_property
    def other(self) -> OtherNetwork | None:
        """The base or the refiner beside the trained network; None if that makes validation images alone. Raises ModelUnavailable."""
        if self.stage is None:
            return None
        stage = self.stage if self.stage.is_first else self._with_flavour(self.stage)
        found = other_network(self, stage)
        assert isinstance(found.family, StableDiffusionXL)
        found.family.autoencoder, found.family.continues = self.autoencoder, not stage.is_first
        found.free_text = found.family.free_text_encoders  # the run may still need the autoencoder
        found.find(*(folder for name in found.family.clip_outputs for folder in (name, tokenizer_of(name))))
        return found

    def _with_flavour(self, stage: OtherStage) -> OtherStage:
        """A second network with both text encoders is no refiner, but was made from the base."""
        published = {repository: name for name, repository in self.spec.flavours.items()}
        first = published.get(stage.name, next(name for name in self.spec.flavours if name not in REFINERS))
        if first in REFINERS:
            return stage
        as_base = stage.model.model_copy(update={"model_flavour": first})
        is_refiner = SdxlComponents(as_base, self.spec).find_if_present("text_encoder") is None
        return stage if is_refiner else replace(stage, model=as_base)

    def make_components(self) -> SdxlComponents:
        return SdxlComponents(self.options.model, self.spec)

    # ---- prompts ----

    @property
    def clip_outputs(self) -> Mapping[str, ClipOutput]:
        skip = self.options.model.clip_skip
        second = {"text_encoder_2": ClipOutput(skip, penultimate=True, pooled=True)}
        return second if self.is_refiner else {"text_encoder": ClipOutput(skip, penultimate=True), **second}

    def load_encoder(self, name: str, dtype: torch.dtype) -> ClipEncoder:
        return self.parts.load_clip(dtype) if name == "text_encoder" else self.parts.load_open_clip(dtype)

    def load_tokenizer_of(self, name: str) -> CLIPTokenizer:
        return self.parts.load_tokenizer(tokenizer_of(name))

    def join_states(self, states: Mapping[str, ClipStates]) -> PromptBatch:
        return {"embeds": torch.cat([found.states for found in states.values()], dim=-1), "pooled": states["text_encoder_2"].first}

    # ---- the network ----

    def time_ids(self, sample: SampleFacts) -> list[float]:
        """Six numbers; five of a refiner, whose last is the aesthetic score."""
        ids = super().time_ids(sample)
        return [*ids[:4], self.aesthetic_score] if self.is_refiner else ids

    # ---- validation images and the result ----

    def load_network(self, checkpoint: Path | None = None) -> nn.Module:
        """The other network is found here, so that a run without it ends before it trains."""
        network = super().load_network(checkpoint)
        _ = self.other
        return network

    def expect_prompts(self, texts: Sequence[str]) -> None:
        if self.other is not None:
            self.other.encode(texts)

    def make_pipeline(self, network: nn.Module, *, sampler: str | None = None, spacing: str | None = None) -> Any:
        """With another network, the pipelines of both; the second one takes the sampler of the trained one, with its own prediction."""
        own = super().make_pipeline(network, sampler=sampler, spacing=spacing)
        if self.other is None:
            return own
        added = self.other.family.make_pipeline(self.other.network())
        settings = {"prediction_type": self.other.family.prediction_type}
        added.scheduler = type(own.scheduler).from_config(own.scheduler.config, **settings)
        return TwoPipelines(own, added)

    @torch.no_grad()
    def generate(self, pipeline: Any, request: GenerationRequest, *, on_step: Callable[[SamplerStep], None] | None = None) -> Image.Image:
        """Both networks share the random numbers of the request, and the first one hands its noisy latents over."""
        if not isinstance(pipeline, TwoPipelines):
            return super().generate(pipeline, request, on_step=on_step)
        other = self.other
        assert other is not None and isinstance(other.family, StableDiffusionXL)
        theirs = replace(request, prompt=other.prompt(request.text), negative=other.prompt(request.negative_text))
        stages = [(self, pipeline.own, request), (other.family, pipeline.other, theirs)]
        (one, first, asked), (two, second, then) = reversed(stages) if other.stage.is_first else stages
        generator, report, split = request.generator(), counted(on_step), other.stage.split
        size = {"width": request.width, "height": request.height}
        noisy = one.sample(first, asked, {**size, "denoising_end": split}, generator, report)
        begun = {"image": noisy, "denoising_start": split, "aesthetic_score": two.aesthetic_score}
        latents = two.sample(second, then, begun, generator, report)
        image: Image.Image = pipeline.own.image_processor.postprocess(self.autoencoder.decode(latents), output_type="pil")[0]
        return image

    def release_encoders(self) -> None:
        super().release_encoders()
        if self.other is not None:
            self.other.release()

    @property
    def pipeline_name(self) -> str:
        if self.spec.steers:
            return self.spec.steers.pipeline
        return IMAGE_PIPELINE if self.is_refiner else "StableDiffusionXLPipeline"

    def bare_pipeline(self, unet: nn.Module, scheduler: SchedulerMixin, trained: Mapping[str, nn.Module]) -> Any:
        no_text = dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
        parts = {**no_text, **trained, **self.pipeline_settings()}
        pipeline = getattr(diffusers, IMAGE_PIPELINE if self.continues else self.pipeline_name)
        return pipeline(vae=self.vae(), unet=unet, scheduler=scheduler, add_watermarker=False, **parts)

    def pipeline_settings(self) -> Mapping[str, Any]:
        return {"requires_aesthetics_score": True} if self.is_refiner else {}

    def image_arguments(self, request: GenerationRequest) -> dict[str, Any]:
        """A refiner changes an image: it is given grey latents, of which the first step's noise leaves nothing."""
        if not self.is_refiner:
            return super().image_arguments(request)
        cells, channels = self.spec.latents.scale_factor_px, self.spec.latents.channels
        grey = torch.zeros(1, channels, request.height // cells, request.width // cells)
        return {"image": grey, "strength": 1.0, "aesthetic_score": self.aesthetic_score}

    def text_parts(self) -> Mapping[str, CopiedPart]:
        parts = self.parts
        kinds: dict[str, tuple[str, Callable[[], Any]]] = {
            "text_encoder": ("CLIPTextModel", lambda: parts.load_clip(None)),
            "text_encoder_2": ("CLIPTextModelWithProjection", lambda: parts.load_open_clip(None)),
            "tokenizer": ("CLIPTokenizer", lambda: parts.load_tokenizer("tokenizer")),
            "tokenizer_2": ("CLIPTokenizer", lambda: parts.load_tokenizer("tokenizer_2")),
        }
        return {
            name: CopiedPart("transformers", kinds[name][0], self.parts.find(name), kinds[name][1], is_text=True)
            for name in (*self.clip_outputs, *map(tokenizer_of, self.clip_outputs))
        }


FAMILY = StableDiffusionXL
