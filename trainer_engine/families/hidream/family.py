"""HiDream-I1 as the trainer sees it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

import torch
from diffusers import HiDreamImagePipeline
from PIL import Image
from torch import Tensor, nn

from trainer_engine.config.options import TrainingOptions
from trainer_engine.config.sdnq_settings import weights_identity
from trainer_engine.datasets.hashes import FileHashes
from trainer_engine.families.common.autoencoder import Autoencoder
from trainer_engine.families.common.flow_family import FlowFamily
from trainer_engine.families.common.latent_squares import token_count
from trainer_engine.families.generation import GenerationRequest, SamplerStep, StepReport
from trainer_engine.families.hidream.attention import DispatchedAttention
from trainer_engine.families.hidream.components import LLAMA, HiDreamComponents
from trainer_engine.families.hidream.experts import Balance, image_of, make_trainable
from trainer_engine.families.hidream.options import HiDreamOptions
from trainer_engine.families.hidream.prompts import FourEncoders, TextPart, network_prompts, stacked
from trainer_engine.families.hidream.spec import ENCODERS, SPEC, states_read
from trainer_engine.families.inputs import STORED, PromptBatch, PromptEmbedding, StepInputs
from trainer_engine.families.modules import DiffusersNetwork, free_device_memory, unwrap
from trainer_engine.runtime.devices import Devices

TIMESTEPS = 1000
"""The network counts noise levels up to this; sigma is in [0, 1]."""
ROUNDING = 1e-9
"""Share by which the pipeline's area exceeds that of an image, so that its square roots do not cut off an edge."""


def layers_of(network: nn.Module) -> tuple[int, ...]:
    """The states of Llama that a network reads, which may be wrapped."""
    return states_read(cast("DiffusersNetwork", unwrap(network)).config)


class HiDream(FlowFamily):
    """HiDream.ai, 2025, "HiDream-I1: A High-Efficient Image Generative Foundation Model with Sparse Diffusion Transformer".

    A prompt is ``{"embeds": (T, D), "llama": (layers, T, D), "pooled": (P1 + P2,)}``: the states of T5 and of all layers of Llama that the
    blocks read, with their padding, to which the network attends, and what both CLIPs make of the prompt. The network predicts the
    velocity from noise to data, the opposite of what flow matching trains.
    """

    spec = SPEC
    parts: HiDreamComponents

    def __init__(self, options: TrainingOptions, devices: Devices) -> None:
        super().__init__(options, devices)
        self.own = options.of_family(HiDreamOptions)
        self.parts = HiDreamComponents(options.model)
        self.autoencoder = Autoencoder(lambda: self.parts.load_vae(devices.vae), devices.device, options.autoencoder)
        self.text = FourEncoders(
            self._load_text,
            devices.device,
            find_layers=lambda: self.parts.llama_layers,
            token_limit=self.token_limit,
            zero_padding=options.model.t5_padding == "zero",
        )
        self.balance: Balance | None = None

    # ---- encoders ----

    @property
    def _precisions(self) -> dict[str, str]:
        chosen = self.options.precision
        first, second = chosen.text_encoder_1_precision, chosen.text_encoder_2_precision
        return dict(zip(ENCODERS, (first, second, chosen.text_encoder_3_precision, chosen.text_encoder_4_precision), strict=True))

    def text_fingerprint(self, hashes: FileHashes) -> str:
        folders = (*ENCODERS, *SPEC.prompts.tokenizer_folders)
        weights = " ".join(self.parts.find(folder).fingerprint(hashes) for folder in folders)
        precisions = " ".join(weights_identity(precision, self.options) for precision in self._precisions.values())
        layers, padding = self.parts.llama_layers, self.options.model.t5_padding
        return f"{weights} {self.devices.text} {precisions} {self.token_limit} {layers} {padding} {STORED}"

    def encode_images(self, pixels: Tensor, *, exact: bool = False) -> Tensor:
        return self.autoencoder.encode(pixels, exact=exact)

    def encode_prompts(self, prompts: Sequence[str], references: Sequence[Sequence[Tensor]] = ()) -> list[PromptEmbedding]:
        return self.text.encode(prompts)

    def _load_text(self, name: str) -> TextPart:
        loaded = self.parts.load_encoder(name, self.devices.text)
        encoder = loaded.model if name == LLAMA else loaded  # without the layer that makes words of its states
        self.place(encoder, self._precisions[name], part=name)
        return encoder, self.parts.load_tokenizer(name)

    def free_encoders(self) -> None:
        self.autoencoder.free()
        self.text.free()
        free_device_memory(self.devices.device)

    def collate_prompts(self, prompts: Sequence[PromptEmbedding]) -> PromptBatch:
        return stacked(prompts)

    # ---- the transformer ----

    def load_component(self, name: str, dtype: torch.dtype, folder: Path | None = None) -> nn.Module:
        transformer = self.parts.load_transformer(dtype, folder)
        make_trainable(transformer)
        network: nn.Module = transformer
        DispatchedAttention.give(network)
        return network

    def load_network(self, checkpoint: Path | None = None) -> nn.Module:
        network = super().load_network(checkpoint)
        if self.own.hidream_use_load_balancing_loss:
            self.balance = Balance(network, self.own.hidream_load_balancing_loss_weight)
        return network

    def token_count(self, latent_shape: Sequence[int]) -> int:
        return token_count(latent_shape)

    def predict(self, network: nn.Module, inputs: StepInputs) -> Tensor:
        """Return the velocity (B, C, h, w)."""
        if self.balance is not None:
            self.balance.clear()
        device, dtype = self.devices.device, self.devices.network
        height, width = inputs.noisy_latents.shape[-2:]
        output: Tensor = network(
            hidden_states=inputs.noisy_latents.to(device, dtype),
            timesteps=inputs.timesteps.to(device, torch.float32) * TIMESTEPS,
            **network_prompts(inputs.prompts, layers_of(network), device, dtype),
            return_dict=False,
        )[0]
        return -(image_of(output, height, width) if unwrap(network).training else output)

    def penalty(self) -> Tensor | None:
        """How unevenly the experts were used, with ``hidream_use_load_balancing_loss``."""
        return self.balance.take() if self.balance is not None else None

    # ---- validation and the result ----

    @property
    def pipeline_name(self) -> str:
        return "HiDreamImagePipeline"

    @torch.no_grad()
    def generate(
        self, pipeline: HiDreamImagePipeline, request: GenerationRequest, *, on_step: Callable[[SamplerStep], None] | None = None
    ) -> Image.Image:
        """The pipeline enlarges every image to its usual area, which is that of the image here."""
        edge_px = math.sqrt(request.width * request.height * (1 + ROUNDING))
        pipeline.default_sample_size = edge_px / pipeline.vae_scale_factor
        with self.devices.autocast():
            latents = pipeline(
                **self._given("", request.prompt, pipeline.transformer),
                **(self._given("negative_", request.negative, pipeline.transformer) if request.guidance > 1 else {}),
                height=request.height,
                width=request.width,
                num_inference_steps=request.steps,
                guidance_scale=request.guidance,
                generator=request.generator(),
                output_type="latent",
                callback_on_step_end=StepReport(on_step),
            ).images
        return self.autoencoder.picture(latents)

    def _given(self, prefix: str, prompt: PromptEmbedding, network: nn.Module) -> dict[str, Tensor]:
        """A prompt as arguments of the pipeline."""
        given = network_prompts(stacked([prompt]), layers_of(network), self.devices.device, self.devices.network)
        names = {"t5": "encoder_hidden_states_t5", "llama3": "encoder_hidden_states_llama3"}
        states = {f"{prefix}prompt_embeds_{kind}": given[name] for kind, name in names.items()}
        return {**states, f"{prefix}pooled_prompt_embeds": given["pooled_embeds"]}


FAMILY = HiDream
