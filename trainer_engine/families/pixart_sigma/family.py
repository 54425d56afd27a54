"""PixArt Sigma as the trainer sees it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any, cast

import torch
from diffusers import AutoencoderKL, PixArtSigmaPipeline, PixArtTransformer2DModel
from PIL import Image
from torch import Tensor, nn

from trainer_engine.config.controlnet import NAME as CONTROLNET
from trainer_engine.config.options import TrainingOptions
from trainer_engine.config.sdnq_settings import weights_identity
from trainer_engine.config.stages import USUAL_TIMESTEPS, other_stage
from trainer_engine.datasets.hashes import FileHashes
from trainer_engine.families.common.autoencoder import Autoencoder
from trainer_engine.families.common.control import control_latents, fit_to_control
from trainer_engine.families.common.controlnet import control_picture
from trainer_engine.families.common.pipeline_folder import plan_of, write_pipeline
from trainer_engine.families.common.stages import OtherNetwork, SharedSchedule, other_network
from trainer_engine.families.common.t5_text import T5Family, T5Text
from trainer_engine.families.generation import GenerationRequest, SamplerStep
from trainer_engine.families.inputs import PromptBatch, PromptEmbedding, StepInputs
from trainer_engine.families.modules import unwrap
from trainer_engine.families.pixart_sigma.components import PixArtParts
from trainer_engine.families.pixart_sigma.control import PixArtSigmaControlPipeline
from trainer_engine.families.pixart_sigma.controlnet import SteeredPixArt
from trainer_engine.families.pixart_sigma.spec import SPEC
from trainer_engine.runtime.devices import Devices

PROMPT_LENGTH_MULTIPLE = 32
"""Prompts of a batch are padded to a multiple of this, so that the network sees few different shapes."""

PATCH_CELLS = 2
"""Edge of a patch in latent cells."""


class PixArtSigma(T5Family):
    """Chen et al., 2024, "PixArt-Sigma: Weak-to-Strong Training of Diffusion Transformer for 4K Text-to-Image Generation".

    A prompt is ``{"embeds": (T, D)}``: the T5 states of its real tokens. Padding is masked out of the cross-attention, so a prompt
    stored without it trains exactly as one padded to 300 tokens.
    """

    spec = SPEC
    parts: PixArtParts

    def __init__(self, options: TrainingOptions, devices: Devices) -> None:
        super().__init__(options, devices)
        self.parts = PixArtParts(options.model, self.spec)
        self.autoencoder = Autoencoder(lambda: self.parts.load_vae(devices.vae), devices.device, options.autoencoder)
        self.text = T5Text(self.load_text, devices.device, token_limit=self.token_limit)
        self.stage = other_stage(options, self.spec)

    @cached_property
    def other(self) -> OtherNetwork | None:
        """The other stage, which reads the prompts of this one; None if this one makes validation images alone. Raises ModelUnavailable."""
        if self.stage is None:
            return None
        found = other_network(self, self.stage)
        found.find()
        return found

    # ---- encoders ----

    def text_fingerprint(self, hashes: FileHashes) -> str:
        encoder, tokenizer = self.parts.find("text_encoder"), self.parts.find("tokenizer")
        chosen = weights_identity(self.options.precision.text_encoder_1_precision, self.options)
        precision = "" if chosen == "no_change" else f" {chosen}"
        return f"{encoder.fingerprint(hashes)} {tokenizer.fingerprint(hashes)} {self.token_limit} {self.devices.text}{precision}"

    def vae(self) -> AutoencoderKL:
        """The autoencoder, loaded at the first call."""
        return self.autoencoder.model

    def encode_prompts(self, prompts: Sequence[str], references: Sequence[Sequence[Tensor]] = ()) -> list[PromptEmbedding]:
        """Lower case and stripped, padded to the limit while encoding, as the pipeline does it; longer prompts are cut off."""
        states, mask = self.text.encode([prompt.lower().strip() for prompt in prompts])
        lengths = mask.sum(dim=1).tolist()
        return [{"embeds": state[: max(length, 1)].clone()} for state, length in zip(states, lengths, strict=True)]

    def collate_prompts(self, prompts: Sequence[PromptEmbedding]) -> PromptBatch:
        """``embeds`` (B, T, D) and ``mask`` (B, T), 1 for real tokens; T as short as the batch allows, and fixed for a compiled network."""
        embeds = [prompt["embeds"] for prompt in prompts]
        longest = max(len(embed) for embed in embeds)
        compiled = self.options.is_compiled
        rounded = -(-longest // PROMPT_LENGTH_MULTIPLE) * PROMPT_LENGTH_MULTIPLE
        length = self.token_limit if compiled else max(longest, min(rounded, self.token_limit))
        padded, mask = embeds[0].new_zeros(len(embeds), length, embeds[0].shape[-1]), torch.zeros(len(embeds), length, dtype=torch.int64)
        for row, embed in enumerate(embeds):
            padded[row, : len(embed)], mask[row, : len(embed)] = embed, 1
        return {"embeds": padded, "mask": mask}

    # ---- the transformer ----

    def load_network(self, checkpoint: Path | None = None) -> nn.Module:
        """The other stage is found here, so that a run without it ends before it trains."""
        network = super().load_network(checkpoint)
        _ = self.other
        return network

    def load_component(self, name: str, dtype: torch.dtype, folder: Path | None = None) -> nn.Module:
        if name == CONTROLNET:
            return self.parts.load_controlnet(self.options, dtype, folder)
        network: nn.Module = self.parts.load_transformer(dtype, folder)
        fit_to_control(network, self.options.model, self.spec)
        return network

    def token_count(self, latent_shape: Sequence[int]) -> int:
        _, height, width = latent_shape
        return height * width // PATCH_CELLS**2

    def predict(self, network: nn.Module, inputs: StepInputs) -> Tensor:
        """Return the first half of the output channels; the second is a learned variance that this objective does not train.

        The family takes no references: its spec names no flavour for them, and the preflight refuses such datasets.
        """
        # NOTE: not the network's own ``device``: diffusers asks every module for it, hundreds in this network, at each call.
        bare, device, dtype = unwrap(network), self.devices.device, self.devices.network
        if self.spec.steers:
            assert inputs.control is not None, "every sample of a run with a ControlNet has a control image"
            network = bare = self._steered(network)
            bare.control, dtype = inputs.control.to(device), self.devices.frozen
        latents = inputs.noisy_latents.to(device, dtype)
        seen = torch.cat([latents, control_latents(inputs).to(device, dtype)], dim=1) if self.spec.widened else latents
        output: Tensor = network(
            seen,
            encoder_hidden_states=inputs.prompts["embeds"].to(device, dtype),
            encoder_attention_mask=inputs.prompts["mask"].to(device),
            timestep=inputs.timesteps.to(device),
            added_cond_kwargs=_size_conditions(bare, latents),
            return_dict=False,
        )[0]
        return output[:, : latents.shape[1]]

    def _steered(self, network: nn.Module) -> SteeredPixArt:
        """The frozen transformer with the ControlNet, which may be wrapped, in it."""
        return SteeredPixArt(cast("PixArtTransformer2DModel", self.beside["transformer"]), network, self.devices.network)

    # ---- generation and the result ----

    @property
    def pipeline_name(self) -> str:
        return self.spec.widened.pipeline if self.spec.widened else "PixArtSigmaPipeline"

    def make_pipeline(self, network: nn.Module, *, sampler: str | None = None, spacing: str | None = None) -> PixArtSigmaPipeline:
        scheduler = self.parts.make_scheduler(self.prediction_type, sampler, spacing)
        network = self._steered(network) if self.spec.steers else self._joined(network)
        cls = PixArtSigmaControlPipeline if self.spec.widened else PixArtSigmaPipeline
        pipeline = cls(tokenizer=None, text_encoder=None, vae=self.vae(), transformer=network, scheduler=scheduler)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def _joined(self, network: nn.Module) -> nn.Module:
        """The transformer with the other stage, if validation images are made by both."""
        if self.other is None:
            return network
        other, stage = self.other.network(), self.other.stage
        border = round((1 - stage.split) * int(self.scheduler_config().get("num_train_timesteps", USUAL_TIMESTEPS)))
        return SharedSchedule(other, network, border) if stage.is_first else SharedSchedule(network, other, border)

    def release_encoders(self) -> None:
        super().release_encoders()
        if self.other is not None:
            self.other.release()

    @torch.no_grad()
    def generate(
        self, pipeline: PixArtSigmaPipeline, request: GenerationRequest, *, on_step: Callable[[SamplerStep], None] | None = None
    ) -> Image.Image:
        batch = self.collate_prompts([request.prompt, request.negative])
        embeds, mask = batch["embeds"].to(self.devices.device), batch["mask"].to(self.devices.device)
        extra: dict[str, Any] = {}
        if self.spec.sees_control:
            control = self.encode_images(pipeline.image_processor.preprocess(control_picture(request))).to(self.devices.device)
            extra = {"control_image": control} if self.spec.widened else {}
        if self.spec.steers:
            pipeline.transformer.control = control
        numbers = count(1)  # the pipeline's own begin later where the base model's sampler warms up
        with self.devices.autocast(), _with_size_conditions(pipeline.transformer):
            latents = pipeline(
                prompt_embeds=embeds[:1],
                prompt_attention_mask=mask[:1],
                negative_prompt=None,
                negative_prompt_embeds=embeds[1:],
                negative_prompt_attention_mask=mask[1:],
                width=request.width,
                height=request.height,
                num_inference_steps=request.steps,
                guidance_scale=request.guidance,
                generator=request.generator(),
                use_resolution_binning=False,
                clean_caption=False,
                output_type="latent",
                callback=(lambda _, timestep, latents: on_step(SamplerStep(next(numbers), float(timestep), latents))) if on_step else None,
                **extra,
            ).images
        image: Image.Image = pipeline.image_processor.postprocess(self.autoencoder.decode(latents), output_type="pil")[0]
        return image

    def save_pipeline(self, folder: Path, network: nn.Module) -> None:
        scheduler = self.parts.make_scheduler(self.prediction_type)
        write_pipeline(folder, plan_of(self, network, self.parts.copied(), scheduler), self.options)


def _size_conditions(network: nn.Module, latents: Tensor) -> dict[str, Tensor | None]:
    """Size in pixels and aspect (height / width) of the image that the latents stand for, where the network was built to know them."""
    if not network.use_additional_conditions:
        return {"resolution": None, "aspect_ratio": None}
    height, width = (edge * SPEC.latents.scale_factor_px for edge in latents.shape[-2:])
    # Filled on the device: a list of numbers would be copied there from the host in every pass.
    rows, columns, aspects = (latents.new_full((len(latents), 1), value) for value in (height, width, height / width))
    return {"resolution": torch.cat([rows, columns], dim=1), "aspect_ratio": aspects}


@contextmanager
def _with_size_conditions(network: nn.Module) -> Iterator[None]:
    """The Sigma pipeline passes no sizes; networks that want them get them from the latents."""

    def add_sizes(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return args, {**kwargs, "added_cond_kwargs": _size_conditions(module, args[0])}

    transformers = network.networks if isinstance(network, SharedSchedule) else (network,)
    hooks = [transformer.register_forward_pre_hook(add_sizes, with_kwargs=True) for transformer in transformers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


FAMILY = PixArtSigma
