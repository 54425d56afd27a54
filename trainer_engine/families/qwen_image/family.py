"""Qwen-Image as the trainer sees it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers import QwenImagePipeline
from PIL import Image
from torch import Tensor, nn

from trainer_engine.config.options import TrainingOptions
from trainer_engine.families.common.autoencoder import FrameAutoencoder
from trainer_engine.families.common.chat_prompts import padded
from trainer_engine.families.common.flow_family import FlowFamily
from trainer_engine.families.common.latent_squares import CELLS, packed, token_count, unpack
from trainer_engine.families.common.qwen_vl import SeeingFamily
from trainer_engine.families.common.references import beside
from trainer_engine.families.generation import GenerationRequest, SamplerStep, StepReport
from trainer_engine.families.inputs import PromptBatch, PromptEmbedding, StepInputs
from trainer_engine.families.qwen_image.components import QwenImageComponents
from trainer_engine.families.qwen_image.prompts import DESCRIBE, EDIT, EDIT_PLUS, PromptEncoder, Task
from trainer_engine.families.qwen_image.spec import ONE_REFERENCE, SPEC
from trainer_engine.runtime.devices import Devices

Shape = tuple[int, int, int]
"""(frames, rows, columns) of an image in tokens, from which the network makes positions."""


class QwenImage(FlowFamily, SeeingFamily):
    """Wu et al., 2025, "Qwen-Image Technical Report".

    A prompt is ``{"embeds": (T, D)}``: the last states of Qwen2.5-VL for the prompt, without the conversation before it; if the flavour
    edits, Qwen2.5-VL looks at the references too, and their states come first. Latents are (C, h, w); the autoencoder takes an image as
    a clip of one frame.
    """

    spec = SPEC
    parts: QwenImageComponents

    def __init__(self, options: TrainingOptions, devices: Devices) -> None:
        super().__init__(options, devices)
        self.parts = QwenImageComponents(options.model)
        self.autoencoder = FrameAutoencoder(lambda: self.parts.load_frame_vae(devices.vae), devices.device, options.autoencoder)
        self.text: PromptEncoder = PromptEncoder(
            self.load_text,
            devices.device,
            task=self.task,
            token_limit=self.token_limit,
            load_image_processor=self.parts.load_image_processor,
        )

    @property
    def task(self) -> Task:
        """What the text encoder is asked to do."""
        if not self.parts.edits:
            return DESCRIBE
        return EDIT if self.options.model.model_flavour in ONE_REFERENCE else EDIT_PLUS

    # ---- encoders ----

    def collate_prompts(self, prompts: Sequence[PromptEmbedding]) -> PromptBatch:
        """Processes that share the tokens of a sample take the same number of them."""
        return padded(prompts, self.options.distributed.group_size)

    # ---- the network ----

    def unread_parameters(self, network: nn.Module) -> Sequence[nn.Parameter]:
        """What the last block computes for the prompt after its attention: the stream of the prompt ends there."""
        last = len(network.get_submodule("transformer_blocks")._modules) - 1
        ends = [f"transformer_blocks_{last}_{module}_" for module in ("attn_to_add_out", "txt_mlp")]
        found = ((name.replace(".", "_"), parameter) for name, parameter in network.named_parameters())  # an adapter may write dots so
        return [parameter for name, parameter in found if any(end in name for end in ends)]

    def token_count(self, latent_shape: Sequence[int]) -> int:
        return token_count(latent_shape)

    def predict(self, network: nn.Module, inputs: StepInputs) -> Tensor:
        """Return the velocity (B, C, h, w). References follow the image's tokens in the sequence; the output for theirs is dropped."""
        device, dtype, mask = self.devices.device, self.devices.network, inputs.prompts.get("mask")
        images = [image.to(device, dtype) for image in (inputs.noisy_latents, *inputs.references)]
        batch, _, height, width = images[0].shape
        output: Tensor = network(
            hidden_states=packed(images),
            timestep=inputs.timesteps.to(device, torch.float32),
            encoder_hidden_states=inputs.prompts["embeds"].to(device, dtype),
            encoder_hidden_states_mask=None if mask is None else mask.to(device),
            img_shapes=[shapes_of(images)] * batch,
            return_dict=False,
        )[0]
        return unpack(output[:, : token_count(images[0].shape[1:])], height, width)

    # ---- validation and the result ----

    @property
    def pipeline_name(self) -> str:
        return {DESCRIBE: "QwenImagePipeline", EDIT: "QwenImageEditPipeline", EDIT_PLUS: "QwenImageEditPlusPipeline"}[self.task]

    @property
    def pipeline_class(self) -> type[Any]:
        kind: type[Any] = QwenImagePipeline
        return kind

    @torch.no_grad()
    def generate(
        self, pipeline: QwenImagePipeline, request: GenerationRequest, *, on_step: Callable[[SamplerStep], None] | None = None
    ) -> Image.Image:
        """``request.guidance`` is classifier-free guidance with the negative prompt; 1 is none.

        The pipelines that edit differ from this one in the tokens of references alone, which they scale for themselves.
        """
        cell = SPEC.latents.scale_factor_px
        height, width = request.height // cell, request.width // cell
        negative = self._given("negative_prompt_embeds", request.negative) if request.guidance > 1 else {}
        report = StepReport(on_step, lambda latents: unpack(latents, height, width))
        references = [reference[None].to(self.devices.device, self.devices.network) for reference in request.references]
        shapes = shapes_of(references)
        with (
            self.devices.autocast(),
            beside(pipeline.transformer, references, lambda given: {"img_shapes": [[*one, *shapes] for one in given["img_shapes"]]}),
        ):
            pipeline(
                **self._given("prompt_embeds", request.prompt),
                **negative,
                true_cfg_scale=request.guidance,
                height=request.height,
                width=request.width,
                num_inference_steps=request.steps,
                max_sequence_length=SPEC.prompts.token_limit,
                generator=request.generator(),
                output_type="latent",
                callback_on_step_end=report,
            )
        return self.preview(report.latents)

    def _given(self, name: str, prompt: PromptEmbedding) -> dict[str, Tensor]:
        """A prompt as arguments of the pipeline, which asks for a mask even if nothing is padded."""
        batch = self.collate_prompts([prompt])
        mask = batch.get("mask", torch.ones(batch["embeds"].shape[:2], dtype=torch.bool))
        return {name: batch["embeds"].to(self.devices.device, self.devices.network), f"{name}_mask": mask.to(self.devices.device)}


def shapes_of(images: Sequence[Tensor]) -> list[Shape]:
    """The shapes of images (B, C, h_i, w_i) in one sequence."""
    return [(1, image.shape[-2] // CELLS, image.shape[-1] // CELLS) for image in images]


FAMILY = QwenImage
