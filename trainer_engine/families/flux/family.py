"""Flux.1 as the trainer sees it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPTextModel, PreTrainedTokenizerBase, T5EncoderModel

from trainer_engine.config.controlnet import NAME as CONTROLNET
from trainer_engine.config.options import TrainingOptions
from trainer_engine.config.sdnq_settings import weights_identity
from trainer_engine.datasets.hashes import FileHashes
from trainer_engine.families.common.autoencoder import Autoencoder
from trainer_engine.families.common.control import control_latents, fit_to_control
from trainer_engine.families.common.controlnet import control_picture
from trainer_engine.families.common.flow_family import FlowFamily
from trainer_engine.families.common.latent_squares import attention_mask, packed, positions_of, token_count, unpack
from trainer_engine.families.flux.components import FluxParts
from trainer_engine.families.flux.options import FluxOptions
from trainer_engine.families.flux.pipelines import ReferencePipeline, in_type, make_pipeline, with_masks
from trainer_engine.families.flux.spec import SPEC
from trainer_engine.families.generation import GenerationRequest, LateGuidance, SamplerStep, StepReport
from trainer_engine.families.inputs import Conditions, PromptBatch, PromptEmbedding, SampleFacts, StepInputs
from trainer_engine.families.modules import DiffusersNetwork, free_device_memory, unwrap
from trainer_engine.runtime.devices import Devices

CLIP_TOKENS = 77
KEPT_POSITIONS = 128
"""Combinations of image sizes whose positions stay on the device; 4,096 tokens take 25 or 49 kB."""


class Flux(FlowFamily):
    """Black Forest Labs, 2024; Kontext: Labs et al., 2025, "FLUX.1 Kontext: Flow Matching for In-Context Image Generation and Editing".

    A prompt is ``{"embeds": (T, D), "pooled": (P,), "mask": (T,)}``: T5's states of all T tokens, padding included, because the network
    attends to it; CLIP's pooled output; and 1 for tokens that are no padding. T5 sees its padding, so the states of padding depend on the
    prompt, and only T5 could compute them again. With ``flux_attention_masked_training`` nothing attends to them, and with
    ``t5_padding=zero`` the network gets zeros: they are left out.
    """

    spec = SPEC
    parts: FluxParts

    def __init__(self, options: TrainingOptions, devices: Devices) -> None:
        super().__init__(options, devices)
        self.own = options.of_family(FluxOptions)
        self.parts = FluxParts(options.model, self.spec)
        self.autoencoder = Autoencoder(lambda: self.parts.load_vae(devices.vae), devices.device, options.autoencoder)
        self._positions = lru_cache(maxsize=KEPT_POSITIONS)(positions_of)
        self._text: tuple[CLIPTextModel, T5EncoderModel, PreTrainedTokenizerBase, PreTrainedTokenizerBase] | None = None

    @property
    def flavour(self) -> str:
        return self.options.model.model_flavour or SPEC.default_flavour

    # ---- encoders ----

    @property
    def stores_padding(self) -> bool:
        """Whether the states of padding are part of an embedding."""
        return not self.own.flux_attention_masked_training and self.options.model.t5_padding != "zero"

    def text_fingerprint(self, hashes: FileHashes) -> str:
        names = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
        weights = " ".join(self.parts.find(name).fingerprint(hashes) for name in names)
        chosen = self.options.precision
        encoders = (chosen.text_encoder_1_precision, chosen.text_encoder_2_precision)
        precisions = " ".join(weights_identity(precision, self.options) for precision in encoders)
        kept = "" if self.stores_padding else " without padding"
        return f"{weights} {self.token_limit} {self.devices.text} skip {self.options.model.clip_skip} {precisions}{kept}"

    def encode_images(self, pixels: Tensor, *, exact: bool = False) -> Tensor:
        return self.autoencoder.encode(pixels, exact=exact)

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str], references: Sequence[Sequence[Tensor]] = ()) -> list[PromptEmbedding]:
        """As the pipeline does it: T5 sees its padding, and of CLIP only the pooled output counts; longer prompts are cut off."""
        clip, t5, clip_tokenizer, t5_tokenizer = self._text_encoders()
        common = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
        short = clip_tokenizer(list(prompts), max_length=CLIP_TOKENS, **common).to(self.devices.device)
        long = t5_tokenizer(list(prompts), max_length=self.token_limit, **common).to(self.devices.device)
        pooled = clip(short.input_ids).pooler_output.cpu()
        states = t5(long.input_ids)[0].cpu()
        masks = long.attention_mask.cpu()
        lengths = [self.token_limit] * len(states) if self.stores_padding else masks.sum(dim=1).tolist()
        return [
            {"embeds": state[:length].clone(), "pooled": summary.clone(), "mask": mask.clone()}
            for state, length, summary, mask in zip(states, lengths, pooled, masks, strict=True)
        ]

    def _text_encoders(self) -> tuple[CLIPTextModel, T5EncoderModel, PreTrainedTokenizerBase, PreTrainedTokenizerBase]:
        text = self._text
        if text is None:
            clip = self.parts.load_clip(self.devices.text, self.options.model.clip_skip)
            t5 = self.parts.load_t5(self.devices.text)
            self.place(clip, self.options.precision.text_encoder_1_precision, part="text_encoder")
            self.place(t5, self.options.precision.text_encoder_2_precision, part="text_encoder_2")
            self._text = text = (clip, t5, *self.parts.load_tokenizers())
        return text

    def free_encoders(self) -> None:
        self.autoencoder.free()
        self._text = None
        free_device_memory(self.devices.device)

    def collate_prompts(self, prompts: Sequence[PromptEmbedding]) -> PromptBatch:
        """``embeds`` (B, T, D), zeros where padding was left out, ``pooled`` (B, P) and ``mask`` (B, T)."""
        stacked = {name: torch.stack([prompt[name] for prompt in prompts]) for name in ("pooled", "mask")}
        embeds = prompts[0]["embeds"].new_zeros(*stacked["mask"].shape, prompts[0]["embeds"].shape[-1])
        for row, prompt in enumerate(prompts):
            embeds[row, : len(prompt["embeds"])] = prompt["embeds"]
        return {"embeds": embeds, **stacked}

    # ---- the transformer ----

    def load_component(self, name: str, dtype: torch.dtype, folder: Path | None = None) -> nn.Module:
        if name == CONTROLNET:
            return self.parts.load_controlnet(self.options, dtype, folder)
        network: nn.Module = self.parts.load_transformer(dtype, folder)
        fit_to_control(network, self.options.model, self.spec)
        return network

    def token_count(self, latent_shape: Sequence[int]) -> int:
        return token_count(latent_shape)

    def predict(self, network: nn.Module, inputs: StepInputs) -> Tensor:
        """Return the velocity of the image. References follow its tokens in the sequence; the output for their tokens is dropped."""
        height, width = inputs.noisy_latents.shape[-2:]
        if self.spec.steers:
            output = self._steered(network, inputs)
        else:
            output = network(**self._arguments(network, inputs, self.devices.network))[0]
        return unpack(output[:, : height * width // 4], height, width)

    def _arguments(self, network: nn.Module, inputs: StepInputs, dtype: torch.dtype) -> dict[str, Any]:
        """What the transformer and its ControlNet take alike. ``network``: the one of the two that takes it."""
        # NOTE: not the network's own ``device``: diffusers asks every module for it, thousands in this network, at each call.
        device, prompts = self.devices.device, inputs.prompts
        images = [image.to(device, dtype) for image in (inputs.noisy_latents, *inputs.references)]
        tokens = packed(images)
        if self.spec.widened:
            tokens = torch.cat([tokens, packed([control_latents(inputs).to(device, dtype)])], dim=2)
        return {
            "hidden_states": tokens,
            "timestep": inputs.timesteps.to(device, torch.float32),
            "guidance": self._guidance(inputs, device) if cast("DiffusersNetwork", unwrap(network)).config.guidance_embeds else None,
            "pooled_projections": prompts["pooled"].to(device, dtype),
            "encoder_hidden_states": prompts["embeds"].to(device, dtype),
            "txt_ids": torch.zeros(prompts["embeds"].shape[1], 3, device=device, dtype=dtype),
            "img_ids": self._positions(tuple((image.shape[-2], image.shape[-1]) for image in images), device, dtype),
            "joint_attention_kwargs": self._attention(prompts["mask"].to(device), tokens.shape[1]),
            "return_dict": False,
        }

    def _steered(self, network: nn.Module, inputs: StepInputs) -> Tensor:
        """The tokens that the frozen transformer predicts; the ControlNet adds its outputs behind the transformer's blocks."""
        assert inputs.control is not None, "every sample of a run with a ControlNet has a control image"
        dtype, beside = self.devices.frozen, self.beside["transformer"]
        control = packed([inputs.control.to(self.devices.device, self.devices.network)])
        residuals = network(**self._arguments(network, inputs, self.devices.network), controlnet_cond=control)
        double, single = ([residual.to(dtype) for residual in of_blocks] for of_blocks in residuals)
        arguments = self._arguments(beside, inputs, dtype)
        output: Tensor = beside(**arguments, controlnet_block_samples=double, controlnet_single_block_samples=single)[0]
        return output

    def conditions(self, samples: Sequence[SampleFacts], generators: Sequence[torch.Generator] | None = None) -> Conditions:
        """``guidance`` (B,) if it is sampled from a range; without it, ``predict`` takes ``flux_guidance_value``."""
        if generators is None or self.own.flux_guidance_mode == "constant":
            return {}
        low, high = self.own.flux_guidance_min, self.own.flux_guidance_max
        return {"guidance": low + (high - low) * torch.cat([torch.rand(1, generator=generator) for generator in generators])}

    def _guidance(self, inputs: StepInputs, device: torch.device) -> Tensor:
        """(B,) guidance scale: sampled for each sample, or ``flux_guidance_value`` for all."""
        if "guidance" in inputs.conditions:
            return inputs.conditions["guidance"].to(device)
        return torch.full((len(inputs.noisy_latents),), self.own.flux_guidance_value, device=device)

    def _attention(self, mask: Tensor, image_tokens: int) -> dict[str, Tensor] | None:
        return {"attention_mask": attention_mask(mask, image_tokens)} if self.own.flux_attention_masked_training else None

    # ---- generation and the result ----

    @property
    def pipeline_name(self) -> str:
        if self.spec.steers:
            return self.spec.steers.pipeline
        if self.spec.widened:
            return self.spec.widened.pipeline
        return "FluxKontextPipeline" if self.flavour in SPEC.takes_references else "FluxPipeline"

    def make_pipeline(self, network: nn.Module, *, sampler: str | None = None, spacing: str | None = None) -> Any:
        """Without ``spacing``: the straight paths of flow matching are walked in even steps."""
        networks = {**self.beside, **self.trained_modules(network)}
        parts = {**networks, "vae": self.autoencoder.model, "scheduler": self.parts.make_scheduler(sampler)}
        return make_pipeline(self.pipeline_name, parts)

    @torch.no_grad()
    def generate(self, pipeline: Any, request: GenerationRequest, *, on_step: Callable[[SamplerStep], None] | None = None) -> Image.Image:
        """``request.guidance`` is an input of the network; the negative prompt is used if ``true_guidance`` is above 1."""
        device, dtype = self.devices.device, self.devices.network
        batch = self.collate_prompts([request.prompt, request.negative])
        embeds, pooled = batch["embeds"].to(device, dtype), batch["pooled"].to(device, dtype)
        references = [reference[None].to(device, dtype) for reference in request.references]
        height, width = request.height // 16 * 2, request.width // 16 * 2
        image_tokens = sum(token_count(shape) for shape in [(1, height, width), *(one.shape[1:] for one in references)])
        masks = self._attention(batch["mask"].to(device), image_tokens)
        report = StepReport(on_step, lambda latents: unpack(latents, height, width))
        guidance = LateGuidance(request.true_guidance, request.unguided_steps, report)
        extra: dict[str, Any] = {}
        if isinstance(pipeline, ReferencePipeline):
            pipeline.references = references
            extra = {"max_area": request.width * request.height, "_auto_resize": False}
        if self.spec.sees_control:
            extra = {"control_image": control_picture(request)}
        if guidance > 1 and not self.spec.widened:
            extra |= {"true_cfg_scale": guidance, "negative_prompt_embeds": embeds[1:], "negative_pooled_prompt_embeds": pooled[1:]}

        with self.devices.autocast(), with_masks(pipeline.transformer, pooled, masks), in_type(pipeline.transformer, dtype):
            pipeline(
                prompt_embeds=embeds[:1],
                pooled_prompt_embeds=pooled[:1],
                width=request.width,
                height=request.height,
                num_inference_steps=request.steps,
                guidance_scale=request.guidance,
                generator=request.generator(),
                output_type="latent",
                callback_on_step_end=report,
                **extra,
            )
        return self.preview(report.latents)


FAMILY = Flux
