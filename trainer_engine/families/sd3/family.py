"""Stable Diffusion 3.5 as the trainer sees it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from diffusers import StableDiffusion3Pipeline
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import CLIPTokenizer, PreTrainedTokenizerBase, T5EncoderModel

from trainer_engine.config.controlnet import NAME as CONTROLNET
from trainer_engine.config.options import TrainingOptions
from trainer_engine.config.sdnq_settings import weights_identity
from trainer_engine.config.skipped_layers import SkippedLayers
from trainer_engine.datasets.hashes import FileHashes
from trainer_engine.families.common.autoencoder import Autoencoder
from trainer_engine.families.common.clip_prompts import ClipFamily
from trainer_engine.families.common.clip_text import ClipEncoder, ClipOutput, ClipStates
from trainer_engine.families.common.controlnet import control_picture
from trainer_engine.families.common.flow_family import FlowFamily
from trainer_engine.families.generation import GenerationRequest, SamplerStep, StepReport
from trainer_engine.families.inputs import PromptBatch, PromptEmbedding, StepInputs
from trainer_engine.families.modules import DiffusersNetwork, free_device_memory, unwrap
from trainer_engine.families.sd3.components import CLIPS, Sd3Components
from trainer_engine.families.sd3.controlnet import ControlPipeline, controlnet_inputs, encoding_control, unread_parameters
from trainer_engine.families.sd3.options import Sd3Options
from trainer_engine.families.sd3.spec import SPEC
from trainer_engine.runtime.devices import Devices

TIMESTEPS = 1000
"""The network counts noise levels up to this; sigma is in [0, 1]."""
PATCH_CELLS = 2
"""Latent cells along the height and the width of a token."""


def joint_width(network: nn.Module) -> int:
    """Numbers in a token of the prompt as a network takes it, which may be wrapped."""
    return int(cast("DiffusersNetwork", unwrap(network)).config.joint_attention_dim)


class StableDiffusion3(FlowFamily, ClipFamily):
    """Esser et al., 2024, "Scaling Rectified Flow Transformers for High-Resolution Image Synthesis".

    A prompt is ``{"embeds": (T, D), "clip": (77, D1 + D2), "pooled": (P1 + P2,)}``: T5's states of all T tokens, none if the base model
    has no T5; the penultimate states of both CLIPs side by side; and their projected pooled prompts. The network attends to the padding as
    well, whose states depend on the prompt; with ``t5_padding=zero`` those of T5 are zeros, and left out.
    """

    spec = SPEC
    parts: Sd3Components

    def __init__(self, options: TrainingOptions, devices: Devices) -> None:
        super().__init__(options, devices)
        self.own = options.of_family(Sd3Options)
        self.parts = Sd3Components(options.model, self.spec)
        self.autoencoder = Autoencoder(lambda: self.parts.load_vae(devices.vae), devices.device, options.autoencoder)
        self._t5: tuple[T5EncoderModel, PreTrainedTokenizerBase] | None = None

    # ---- encoders ----

    @property
    def clip_outputs(self) -> Mapping[str, ClipOutput]:
        return dict.fromkeys(CLIPS, ClipOutput(self.options.model.clip_skip, penultimate=True, pooled=True))

    def load_encoder(self, name: str, dtype: torch.dtype) -> ClipEncoder:
        return self.parts.load_clip(name, dtype)

    def load_tokenizer_of(self, name: str) -> CLIPTokenizer:
        return self.parts.load_clip_tokenizer(name)

    def join_states(self, states: Mapping[str, ClipStates]) -> PromptBatch:
        found = states.values()
        return {"clip": torch.cat([one.states for one in found], dim=-1), "pooled": torch.cat([one.first for one in found], dim=-1)}

    @property
    def stores_padding(self) -> bool:
        """Whether T5's states of padding are part of an embedding."""
        return self.options.model.t5_padding != "zero"

    @property
    def zeroed(self) -> tuple[str, ...]:
        """Those tensors of the embedding of an empty prompt that are zeros."""
        clip = self.own.sd3_clip_uncond_behaviour
        t5 = self.own.sd3_t5_uncond_behaviour or clip
        return (*(("clip", "pooled") if clip == "zero" else ()), *(("embeds",) if t5 == "zero" else ()))

    def text_fingerprint(self, hashes: FileHashes) -> str:
        t5, precision = self.parts.t5, weights_identity(self.options.precision.text_encoder_3_precision, self.options)
        weights = f"{t5.fingerprint(hashes)} {self.parts.find('tokenizer_3').fingerprint(hashes)} {precision}" if t5 else "without T5"
        zeros = " ".join(self.zeroed) + ("" if self.stores_padding else " without padding")
        return f"{super().text_fingerprint(hashes)} {weights} {self.token_limit} {zeros}"

    def encode_images(self, pixels: Tensor, *, exact: bool = False) -> Tensor:
        return self.autoencoder.encode(pixels, exact=exact)

    def encode_prompts(self, prompts: Sequence[str], references: Sequence[Sequence[Tensor]] = ()) -> list[PromptEmbedding]:
        clips, states = super().encode_prompts(prompts), self._t5_states(prompts)
        found = [{"embeds": state, **clip} for clip, state in zip(clips, states, strict=True)]
        for one in (one for one, prompt in zip(found, prompts, strict=True) if not prompt):
            one.update({name: torch.zeros_like(one[name]) for name in self.zeroed})
        return found

    @torch.no_grad()
    def _t5_states(self, prompts: Sequence[str]) -> list[Tensor]:
        """T5 sees its padding, as in the pipeline; longer prompts are cut off."""
        part = self.parts.t5
        if part is None:
            return [torch.zeros(0, 0)] * len(prompts)
        loaded = self._t5
        if loaded is None:
            encoder = self.parts.load_t5(part, self.devices.text)
            self.place(encoder, self.options.precision.text_encoder_3_precision, part="text_encoder_3")
            self._t5 = loaded = encoder, self.parts.load_t5_tokenizer()
        encoder, tokenizer = loaded
        tokens = tokenizer(list(prompts), padding="max_length", max_length=self.token_limit, truncation=True, return_tensors="pt")
        states = encoder(tokens.input_ids.to(self.devices.device))[0].cpu()
        lengths = [self.token_limit] * len(states) if self.stores_padding else tokens.attention_mask.sum(dim=1).tolist()
        return [state[:length].clone() for state, length in zip(states, lengths, strict=True)]

    def free_encoders(self) -> None:
        self.autoencoder.free()
        self.free_text_encoders()
        self._t5 = None
        free_device_memory(self.devices.device)

    def collate_prompts(self, prompts: Sequence[PromptEmbedding]) -> PromptBatch:
        """``clip`` (B, 77, D1 + D2), ``pooled`` (B, P1 + P2) and ``embeds`` (B, T, D), zeros where padding was left out.

        Without T5 ``embeds`` is empty.
        """
        batch = super().collate_prompts([{name: prompt[name] for name in ("clip", "pooled")} for prompt in prompts])
        states = [prompt["embeds"] for prompt in prompts]
        length = self.token_limit if states[0].numel() else 0
        embeds = states[0].new_zeros(len(states), length, states[0].shape[-1])
        for row, state in enumerate(states):
            embeds[row, : len(state)] = state
        return {**batch, "embeds": embeds}

    def joint_states(self, prompts: PromptBatch, width: int) -> Tensor:
        """(B, 77 + T, ``width``): what the network attends to, CLIP's states followed by zeros in the width of T5's."""
        clip, embeds = prompts["clip"], prompts["embeds"]
        if not embeds.numel():
            embeds = clip.new_zeros(len(clip), self.token_limit, width)
        return torch.cat([pad(clip, (0, width - clip.shape[-1])), embeds], dim=1)

    # ---- the network ----

    def load_component(self, name: str, dtype: torch.dtype, folder: Path | None = None) -> nn.Module:
        if name == CONTROLNET:
            return self.parts.load_controlnet(self.options, dtype, folder)
        network: nn.Module = self.parts.load_transformer(dtype, folder)
        return network

    def unread_parameters(self, network: nn.Module) -> Sequence[nn.Parameter]:
        return unread_parameters(network, self.beside["transformer"]) if self.spec.steers else ()

    def token_count(self, latent_shape: Sequence[int]) -> int:
        _, height, width = latent_shape
        return height * width // PATCH_CELLS**2

    def predict(self, network: nn.Module, inputs: StepInputs) -> Tensor:
        """Return the velocity (B, C, h, w)."""
        if self.spec.steers:
            return self._steered(network, inputs)
        output: Tensor = network(**self._arguments(network, inputs, self.devices.network))[0]
        return output

    def _arguments(self, network: nn.Module, inputs: StepInputs, dtype: torch.dtype) -> dict[str, Any]:
        """What the transformer and its ControlNet take alike. ``network``: the one of the two that takes it."""
        device = self.devices.device
        return {
            "hidden_states": inputs.noisy_latents.to(device, dtype),
            "timestep": inputs.timesteps.to(device, torch.float32) * TIMESTEPS,
            "encoder_hidden_states": self.joint_states(inputs.prompts, joint_width(network)).to(device, dtype),
            "pooled_projections": inputs.prompts["pooled"].to(device, dtype),
            "return_dict": False,
        }

    def _steered(self, network: nn.Module, inputs: StepInputs) -> Tensor:
        """The prediction of the frozen transformer; the ControlNet adds its outputs behind the transformer's blocks."""
        assert inputs.control is not None, "every sample of a run with a ControlNet has a control image"
        control = inputs.control.to(self.devices.device, self.devices.network)
        arguments = self._arguments(network, inputs, self.devices.network)
        (residuals,) = network(**controlnet_inputs(network, arguments, control, self._vae_shift))
        dtype, beside = self.devices.frozen, self.beside["transformer"]
        added = [residual.to(dtype) for residual in residuals]
        output: Tensor = beside(**self._arguments(beside, inputs, dtype), block_controlnet_hidden_states=added)[0]
        return output

    @cached_property
    def _vae_shift(self) -> float:
        return self.parts.vae_shift()

    # ---- validation and the result ----

    @property
    def pipeline_name(self) -> str:
        return self.spec.steers.pipeline if self.spec.steers else "StableDiffusion3Pipeline"

    @property
    def pipeline_class(self) -> type[Any]:
        return ControlPipeline if self.spec.steers else StableDiffusion3Pipeline

    @property
    def saved_settings(self) -> Mapping[str, Any]:
        return {} if self.parts.t5 else {"text_encoder_3": [None, None], "tokenizer_3": [None, None]}

    @torch.no_grad()
    def generate(self, pipeline: Any, request: GenerationRequest, *, on_step: Callable[[SamplerStep], None] | None = None) -> Image.Image:
        device, dtype = self.devices.device, self.devices.network
        batch = self.collate_prompts([request.prompt, request.negative])
        embeds = self.joint_states(batch, joint_width(pipeline.transformer)).to(device, dtype)
        pooled = batch["pooled"].to(device, dtype)

        steered = encoding_control(pipeline.controlnet, device, dtype, request.seed) if self.spec.steers else nullcontext()
        extra = {"control_image": control_picture(request)} if self.spec.steers else self._left_out(request.skipped_layers)

        with self.devices.autocast(), steered:
            latents = pipeline(
                prompt_embeds=embeds[:1],
                negative_prompt_embeds=embeds[1:],
                pooled_prompt_embeds=pooled[:1],
                negative_pooled_prompt_embeds=pooled[1:],
                height=request.height,
                width=request.width,
                num_inference_steps=request.steps,
                guidance_scale=request.guidance,
                generator=request.generator(),
                output_type="latent",
                callback_on_step_end=StepReport(on_step),
                **extra,
            ).images
        return self.autoencoder.picture(latents)

    def _left_out(self, skipped: SkippedLayers | None) -> dict[str, Any]:
        """Arguments of the pipeline for the blocks that it also predicts without."""
        if skipped is None:
            return {}
        return {
            "skip_guidance_layers": list(skipped.layers),
            "skip_layer_guidance_scale": self.own.validation_guidance_skip_scale,
            "skip_layer_guidance_start": skipped.start,
            "skip_layer_guidance_stop": skipped.stop,
        }


FAMILY = StableDiffusion3
