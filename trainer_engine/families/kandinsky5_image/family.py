"""Kandinsky 5 for images as the trainer sees it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from torch import Tensor, nn

from trainer_engine.config.options import TrainingOptions
from trainer_engine.config.sdnq_settings import weights_identity
from trainer_engine.datasets.hashes import FileHashes
from trainer_engine.families.common.autoencoder import Autoencoder
from trainer_engine.families.common.flow_family import FlowFamily
from trainer_engine.families.common.latent_squares import CELLS, token_count
from trainer_engine.families.generation import GenerationRequest, SamplerStep, StepReport
from trainer_engine.families.inputs import PromptBatch, PromptEmbedding, StepInputs
from trainer_engine.families.kandinsky5_image.components import Kandinsky5Components
from trainer_engine.families.kandinsky5_image.prompts import POOLED, PromptEncoder, encoded
from trainer_engine.families.kandinsky5_image.spec import SPEC
from trainer_engine.families.modules import free_device_memory
from trainer_engine.runtime.devices import Devices

TIMESTEPS = 1000
"""The network counts time from 0 for data to this for noise."""


class UnshiftedAutoencoder(Autoencoder):
    """The autoencoder of Flux.1 without the shift of its latents.

    NOTE: its configuration states one, which the network was not trained with, and the pipeline of diffusers leaves it out too.
    """

    def _scaled(self, vae: Any, latents: Tensor) -> Tensor:
        scaled: Tensor = latents * vae.config.scaling_factor
        return scaled

    def _unscaled(self, vae: Any, latents: Tensor) -> Tensor:
        unscaled: Tensor = latents / vae.config.scaling_factor
        return unscaled


class Kandinsky5Image(FlowFamily):
    """Kandinsky Lab, 2025, "Kandinsky 5.0: A Family of Foundation Models for Image and Video Generation" (arXiv 2511.14993).

    A prompt is ``{"embeds": (T, D), "pooled": (P,)}``: the last states of Qwen2.5-VL for the prompt and the end of its conversation, and
    CLIP's pooled output. In a flavour that edits, Qwen2.5-VL looks at the reference too, whose latents are further channels of the image
    for the network. Latents are (C, h, w); the network takes an image as a clip of one frame (1, h, w, C). It hides no padding, so that
    each sample is a pass of its own.
    """

    spec = SPEC
    parts: Kandinsky5Components

    def __init__(self, options: TrainingOptions, devices: Devices) -> None:
        super().__init__(options, devices)
        self.parts = Kandinsky5Components(options.model)
        self.autoencoder = UnshiftedAutoencoder(lambda: self.parts.load_vae(devices.vae), devices.device, options.autoencoder)
        self.text = PromptEncoder(self._load_text, devices.device, devices.text, self.token_limit)

    # ---- encoders ----

    def image_fingerprint(self, hashes: FileHashes) -> str:
        """Flux.1 makes other latents with the same autoencoder."""
        return f"{super().image_fingerprint(hashes)} unshifted"

    def text_fingerprint(self, hashes: FileHashes) -> str:
        weights = " ".join(
            self.parts.find(name).fingerprint(hashes) for name in ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
        )
        precisions = " ".join(weights_identity(precision, self.options) for precision in self._text_precisions)
        return f"{self.spec.name} {weights} {self.token_limit} {self.devices.text} {precisions}{' edits' if self.parts.edits else ''}"

    @property
    def _text_precisions(self) -> tuple[str, str]:
        """Those of Qwen2.5-VL and of CLIP."""
        return self.options.precision.text_encoder_1_precision, self.options.precision.text_encoder_2_precision

    def encode_images(self, pixels: Tensor, *, exact: bool = False) -> Tensor:
        return self.autoencoder.encode(pixels, exact=exact)

    def encode_prompts(self, prompts: Sequence[str], references: Sequence[Sequence[Tensor]] = ()) -> list[PromptEmbedding]:
        return encoded(self.text, prompts, references)

    @property
    def prompts_see_references(self) -> bool:
        return self.parts.edits

    def _load_text(self) -> dict[str, Any]:
        """The text encoders on their device, and what prepares prompts for them, by their names in the pipeline."""
        encoders = self.parts.load_language_model(self.devices.text), self.parts.load_clip(self.devices.text)
        for folder, encoder, precision in zip(SPEC.prompts.text_encoder_folders, encoders, self._text_precisions, strict=True):
            self.place(encoder, precision, part=folder)
        prepares = {"tokenizer": self.parts.load_processor(), "tokenizer_2": self.parts.load_clip_tokenizer()}
        return {**dict(zip(SPEC.prompts.text_encoder_folders, encoders, strict=True)), **prepares}

    def free_encoders(self) -> None:
        self.autoencoder.free()
        self.text.free()
        free_device_memory(self.devices.device)

    def collate_prompts(self, prompts: Sequence[PromptEmbedding]) -> PromptBatch:
        """``embeds.<n>`` (T, D) and ``pooled.<n>`` (P,) for each prompt."""
        return {f"{name}.{number}": one for number, prompt in enumerate(prompts) for name, one in prompt.items()}

    # ---- the network ----

    def token_count(self, latent_shape: Sequence[int]) -> int:
        return token_count(latent_shape)

    def predict(self, network: nn.Module, inputs: StepInputs) -> Tensor:
        """Return the velocity (B, C, h, w) from data to noise."""
        device, dtype = self.devices.device, self.devices.network
        clips = _as_clips(inputs.noisy_latents.to(device, dtype))
        if self.parts.edits:
            assert inputs.references, "every sample of a flavour that edits has a reference"
            clips = _beside(clips, _as_clips(inputs.references[0].to(device, dtype)))
        times = TIMESTEPS * inputs.timesteps.to(device, torch.float32)
        places = [torch.arange(count, device=device) for count in (1, *(edge // CELLS for edge in clips.shape[2:4]))]
        found = []
        for row in range(len(clips)):
            embeds, pooled = (inputs.prompts[f"{name}.{row}"][None].to(device, dtype) for name in ("embeds", POOLED))
            output: Tensor = network(
                hidden_states=clips[row : row + 1],
                encoder_hidden_states=embeds,
                pooled_projections=pooled,
                timestep=times[row : row + 1],
                visual_rope_pos=places,
                text_rope_pos=torch.arange(embeds.shape[1], device=device),
                return_dict=False,
            )
            found.append(_as_latents(output))
        return torch.cat(found)

    # ---- validation and the result ----

    @property
    def pipeline_name(self) -> str:
        return "Kandinsky5I2IPipeline" if self.parts.edits else "Kandinsky5T2IPipeline"

    @torch.no_grad()
    def generate(self, pipeline: Any, request: GenerationRequest, *, on_step: Callable[[SamplerStep], None] | None = None) -> Image.Image:
        """``request.guidance`` is classifier-free guidance with the negative prompt; 1 is none.

        NOTE: the pipeline generates in the next of the sizes that it knows, rather than in the one that it is asked for.
        """
        pipeline.resolutions = [(request.width, request.height)]
        report = StepReport(on_step, lambda clips: _as_latents(clips[..., : SPEC.latents.channels]).clone())
        negative = self._given("negative_prompt", request.negative) if request.guidance > 1 else {}
        seen = self._seen(pipeline, request) if self.parts.edits else {}
        with self.devices.autocast():
            pipeline(
                **seen,
                **self._given("prompt", request.prompt),
                **negative,
                height=request.height,
                width=request.width,
                num_inference_steps=request.steps,
                guidance_scale=request.guidance,
                generator=request.generator(),
                output_type="latent",
                callback_on_step_end=report,
            )
        return self.preview(report.latents)

    def _seen(self, pipeline: Any, request: GenerationRequest) -> dict[str, Any]:
        """The noise with the reference behind it, as arguments of the pipeline, which would take a sample of the reference's latents."""
        assert request.reference is not None, "images are generated from references alone"
        pixels = pipeline.image_processor.preprocess(request.reference, height=request.height, width=request.width)
        dtype = pipeline.transformer.dtype
        reference = _as_clips(self.encode_images(pixels).to(self.devices.device, dtype))
        noise = randn_tensor(reference.shape, generator=request.generator(), device=self.devices.device, dtype=dtype)
        return {"image": request.reference, "latents": _beside(noise, reference)}

    def _given(self, name: str, prompt: PromptEmbedding) -> dict[str, Tensor]:
        """A prompt as arguments of the pipeline."""
        device, dtype = self.devices.device, self.devices.network
        return {
            f"{name}_embeds_qwen": prompt["embeds"][None].to(device, dtype),
            f"{name}_embeds_clip": prompt[POOLED][None].to(device, dtype),
            f"{name}_cu_seqlens": torch.tensor([0, len(prompt["embeds"])], dtype=torch.int32, device=device),
        }


def _as_clips(latents: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, 1, h, w, C)."""
    return latents.permute(0, 2, 3, 1).unsqueeze(1)


def _beside(clips: Tensor, reference: Tensor) -> Tensor:
    """Both (B, 1, h, w, C) -> (B, 1, h, w, 2 C + 1): the last channel says that there is a reference."""
    return torch.cat([clips, reference, torch.ones_like(reference[..., :1])], dim=-1)


def _as_latents(clips: Tensor) -> Tensor:
    """(B, 1, h, w, C) as the network has an image -> (B, C, h, w)."""
    return clips[:, 0].permute(0, 3, 1, 2)


FAMILY = Kandinsky5Image
