"""What families with a ``UNet2DConditionModel`` and an ``AutoencoderKL`` share, and those that read prompts through CLIP besides."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, ControlNetModel, SchedulerMixin, UNet2DConditionModel
from PIL import Image
from torch import Tensor, nn

from trainer_engine.config.controlnet import NAME as CONTROLNET
from trainer_engine.config.options import TrainingOptions
from trainer_engine.families.base import Family
from trainer_engine.families.common.autoencoder import Autoencoder
from trainer_engine.families.common.clip_prompts import ClipFamily
from trainer_engine.families.common.controlnet import control_picture, load_controlnet, new_controlnet
from trainer_engine.families.common.pipeline_folder import CopiedPart, plan_of, write_pipeline
from trainer_engine.families.common.samplers import SAMPLERS
from trainer_engine.families.generation import GenerationRequest, SamplerStep, StepReport
from trainer_engine.families.inputs import PromptBatch, StepInputs
from trainer_engine.families.modules import free_device_memory
from trainer_engine.runtime.devices import Devices
from trainer_engine.weights.loading import PartFinder, load_diffusers, make_scheduler, part_in

UNET = "unet"
"""Name of the component that is always trained."""
RESCALE = "validation_guidance_rescale"


class UNetComponents(PartFinder):
    """Finds and loads the components of a Stable Diffusion pipeline."""

    def load_unet(self, dtype: torch.dtype, folder: Path | None = None) -> UNet2DConditionModel:
        """From the base model, or from a folder that holds ``config.json`` and weights."""
        network = load_diffusers(UNet2DConditionModel, part_in(folder) if folder else self.find("unet"), dtype)
        assert isinstance(network, UNet2DConditionModel)
        return network

    def make_scheduler(self, prediction_type: str, sampler: str | None = None, spacing: str | None = None) -> SchedulerMixin:
        """The base model's own sampler, or the named one, on the base model's noise schedule with timesteps spaced by ``spacing``."""
        config = self.scheduler_config()
        name, settings = SAMPLERS[sampler] if sampler else (str(config.get("_class_name")), {})
        spaced = {"timestep_spacing": spacing} if spacing else {}
        return make_scheduler(config, name, {**settings, **spaced, "prediction_type": prediction_type}, self.base.name)


class UNetFamily(Family):
    """A family whose network is a ``UNet2DConditionModel``. What a prompt is, and its pipeline, is up to the family.

    ``network_prompts``, ``trained_encoders`` and ``sampled_prompts`` are those of frozen text encoders.
    """

    parts: UNetComponents

    def __init__(self, options: TrainingOptions, devices: Devices) -> None:
        super().__init__(options, devices)
        self.parts = self.make_components()
        self.autoencoder = Autoencoder(lambda: self.parts.load_vae(devices.vae), devices.device, options.autoencoder)

    @abstractmethod
    def make_components(self) -> UNetComponents:
        """The components of the base model."""

    @abstractmethod
    def bare_pipeline(self, unet: nn.Module, scheduler: SchedulerMixin, trained: Mapping[str, nn.Module]) -> Any:
        """The diffusers pipeline of ``pipeline_name``. ``trained``: text encoders and the ControlNet by name; it has no others."""

    @abstractmethod
    def pipeline_prompts(self, batch: PromptBatch) -> dict[str, Tensor]:
        """The prompt and the negative prompt, encoded in this order, as arguments of the pipeline."""

    def pipeline_settings(self) -> Mapping[str, Any]:
        """Arguments of the pipeline that are no components, as its ``model_index.json`` keeps them."""
        return {}

    def image_arguments(self, request: GenerationRequest) -> dict[str, Any]:
        """What the pipeline starts an image from: its size."""
        return {"width": request.width, "height": request.height}

    @abstractmethod
    def text_parts(self) -> Mapping[str, CopiedPart]:
        """Text encoders and tokenizers of the pipeline that a run leaves."""

    # ---- encoders ----

    @abstractmethod
    def free_text_encoders(self) -> None:
        """Drop the weights of the frozen text encoders."""

    def network_prompts(self, network: nn.Module, prompts: PromptBatch) -> PromptBatch:
        """What the network reads of prompts as ``collate_prompts`` returns them. ``network`` may be wrapped."""
        return prompts

    def trained_encoders(self, network: nn.Module) -> Mapping[str, nn.Module]:
        """The trained text encoders by name, from the bare network of a run."""
        return {}

    def sampled_prompts(self, pipeline: Any, prompts: PromptBatch) -> PromptBatch:
        """As ``network_prompts``, for a pipeline that ``make_pipeline`` returned."""
        return prompts

    def vae(self) -> AutoencoderKL:
        """The autoencoder, loaded at the first call."""
        return self.autoencoder.model

    def encode_images(self, pixels: Tensor, *, exact: bool = False) -> Tensor:
        return self.autoencoder.encode(pixels, exact=exact)

    def free_encoders(self) -> None:
        self.autoencoder.free()
        self.free_text_encoders()
        free_device_memory(self.devices.device)

    # ---- the network ----

    def load_component(self, name: str, dtype: torch.dtype, folder: Path | None = None) -> nn.Module:
        if name == CONTROLNET:
            return self._load_controlnet(dtype, folder)
        unet: nn.Module = self.parts.load_unet(dtype, folder)
        return unet

    def _load_controlnet(self, dtype: torch.dtype, folder: Path | None) -> nn.Module:
        spec = self.spec.steers
        assert spec is not None
        if folder is None and self.spec.components[CONTROLNET].is_made:
            return new_controlnet(ControlNetModel.from_unet, self.parts.load_unet(dtype), spec, self.options)
        return load_controlnet(ControlNetModel, part_in(folder) if folder else self.parts.find(CONTROLNET), dtype)

    def token_count(self, latent_shape: Sequence[int]) -> int:
        _, height, width = latent_shape
        return height * width

    def predict(self, network: nn.Module, inputs: StepInputs) -> Tensor:
        inputs = replace(inputs, prompts=self.network_prompts(network, inputs.prompts))
        if self.spec.steers:
            return self._steered(network, inputs)
        output: Tensor = self.call(network, UNET, **self._arguments(inputs, self.devices.network))[0]
        return output

    def _arguments(self, inputs: StepInputs, dtype: torch.dtype) -> dict[str, Any]:
        """What a UNet and its ControlNet take alike, from inputs whose prompts are encoded."""
        device = self.devices.device
        return {
            "sample": inputs.noisy_latents.to(device, dtype),
            "timestep": inputs.timesteps.to(device),
            "encoder_hidden_states": inputs.prompts["embeds"].to(device, dtype),
            "added_cond_kwargs": self.added_conditions(inputs, device, dtype),
            "return_dict": False,
        }

    def _steered(self, network: nn.Module, inputs: StepInputs) -> Tensor:
        """The prediction of the frozen UNet, to whose skip connections the ControlNet adds its outputs."""
        assert inputs.control is not None, "every sample of a run with a ControlNet has a control image"
        control = inputs.control.to(self.devices.device, self.devices.network)
        down, middle = self.call(network, CONTROLNET, **self._arguments(inputs, self.devices.network), controlnet_cond=control)
        dtype = self.devices.frozen
        output: Tensor = self.beside[UNET](
            **self._arguments(inputs, dtype),
            down_block_additional_residuals=tuple(residual.to(dtype) for residual in down),
            mid_block_additional_residual=middle.to(dtype),
        )[0]
        return output

    def added_conditions(self, inputs: StepInputs, device: torch.device, dtype: torch.dtype) -> dict[str, Tensor] | None:
        """What the UNet embeds together with the timestep, from inputs whose prompts are encoded; None if it takes nothing of the kind."""
        return None

    # ---- validation images and the result ----

    def make_pipeline(self, network: nn.Module, *, sampler: str | None = None, spacing: str | None = None) -> Any:
        scheduler = self.parts.make_scheduler(self.prediction_type, sampler, spacing)
        modules = {**self.beside, **self.trained_modules(network)}
        steering = {"controlnet": modules[CONTROLNET]} if self.spec.steers else {}
        pipeline = self.bare_pipeline(modules[UNET], scheduler, {**self.trained_encoders(network), **steering})
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    @torch.no_grad()
    def generate(self, pipeline: Any, request: GenerationRequest, *, on_step: Callable[[SamplerStep], None] | None = None) -> Image.Image:
        latents = self.sample(pipeline, request, self.image_arguments(request), request.generator(), on_step)
        image: Image.Image = pipeline.image_processor.postprocess(self.autoencoder.decode(latents), output_type="pil")[0]
        return image

    @torch.no_grad()
    def sample(
        self,
        pipeline: Any,
        request: GenerationRequest,
        start: Mapping[str, Any],
        generator: torch.Generator,
        on_step: Callable[[SamplerStep], None] | None = None,
    ) -> Tensor:
        """The latents (1, C, h, w) that a pipeline ends with. ``start``: what it starts from, as ``image_arguments`` returns it."""
        with self.devices.autocast():
            batch = self.sampled_prompts(pipeline, self.collate_prompts([request.prompt, request.negative]))
            latents: Tensor = pipeline(
                **self.pipeline_prompts({name: tensor.to(self.devices.device) for name, tensor in batch.items()}),
                **start,
                num_inference_steps=request.steps,
                guidance_scale=request.guidance,
                **self._pipeline_extras(request),
                generator=generator,
                output_type="latent",
                callback_on_step_end=StepReport(on_step),
            ).images
        return latents

    def _pipeline_extras(self, request: GenerationRequest) -> dict[str, Any]:
        """The control image, or what only pipelines without a ControlNet take."""
        if self.spec.steers:
            return {"image": control_picture(request)}
        return {"guidance_rescale": request.guidance_rescale} if RESCALE in self.spec.sampling.options else {}

    def save_pipeline(self, folder: Path, network: nn.Module) -> None:
        vae = CopiedPart("diffusers", "AutoencoderKL", self.parts.find("vae"), lambda: self.parts.load_vae(None))
        scheduler = self.parts.make_scheduler(self.prediction_type)
        plan = plan_of(self, network, {"vae": vae, **self.text_parts()}, scheduler, self.pipeline_settings())
        write_pipeline(folder, plan, self.options)


class ClipUNetFamily(ClipFamily, UNetFamily):
    """A family with a UNet that reads prompts through CLIP text encoders, which a run may train."""

    def load_component(self, name: str, dtype: torch.dtype, folder: Path | None = None) -> nn.Module:
        if name not in self.spec.trained_text_encoders:
            return super().load_component(name, dtype, folder)
        encoder: nn.Module = self.load_text_component(name, dtype, folder)
        return encoder

    def sampled_prompts(self, pipeline: Any, prompts: PromptBatch) -> PromptBatch:
        if not self.trains_text_encoders:
            return prompts
        return self.encode_live({name: getattr(pipeline, name) for name in self.spec.trained_text_encoders}, prompts)
