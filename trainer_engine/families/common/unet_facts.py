"""Torch-free facts that the specs of all UNet families share."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from trainer_engine.config.controlnet import ControlNetSetting, ControlNetSpec
from trainer_engine.config.distillation import DistillationSpec
from trainer_engine.config.family_parts import SLIDER_TARGETS, AdapterSpec, Component, Role, SamplingSpec
from trainer_engine.config.one_file.layout import NETWORK_PREFIX, VAE_PREFIXES, FileLayout
from trainer_engine.config.precisions import ANY_FAMILY

UNET = Component("unet", "unet.", Role.TRAINED, comfyui_prefix="lora_unet_")
"""ComfyUI and kohya's tools know the layers of these networks by the same flat keys."""
CLIP_ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")
CLIP_L_PARAMETERS, CLIP_H_PARAMETERS, CLIP_G_PARAMETERS = 123_060_480, 340_387_840, 694_659_840
"""Weights of CLIP ViT-L/14 and OpenCLIP ViT-H/14 without, and of OpenCLIP ViT-bigG/14 with projection."""


def clip_component(folder: str, kohya_prefix: str, parameters: int, *, has_projection: bool = False) -> Component:
    """A CLIP text encoder, which a run may train. transformers took ``text_model.`` from the names of the ones without projection."""
    return Component(
        folder,
        f"{folder}.",
        Role.ON_REQUEST,
        comfyui_prefix=kohya_prefix,
        lora_targets=CLIP_ATTENTION,
        file_prefix="" if has_projection else "text_model.",
        parameters=parameters,
    )


MODULE_CLASSES = (
    *("Attention", "FeedForward", "BasicTransformerBlock", "Transformer2DModel", "ResnetBlock2D"),
    *("Downsample2D", "Upsample2D", "TimestepEmbedding", "GEGLU", "Linear", "Conv2d"),
)
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
FEED_FORWARD = ("ff.net.0.proj", "ff.net.2")
CONVOLUTIONS = ("conv1", "conv2", "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv")
LORA_TARGETS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "attention": ATTENTION,
        "attention+ffs": (*ATTENTION, *FEED_FORWARD),
        "attention+convs": (*ATTENTION, *CONVOLUTIONS),
        "all": (*ATTENTION, *FEED_FORWARD, *CONVOLUTIONS, "proj_in", "proj_out", "time_emb_proj"),
    }
)
LYCORIS_START: Mapping[str, Any] = MappingProxyType(
    {
        "algo": "lokr",
        "multiplier": 1.0,
        "full_matrix": True,
        "linear_dim": 10000,
        "linear_alpha": 1,
        "factor": 8,
        "apply_preset": {"target_module": ["Attention"], "module_algo_map": {"Attention": {"factor": 8}}},
    }
)
"""Attention alone: LoKr of the feed-forward layers of these networks diverges easily."""


def file_layout(title: str, prompt_width: int, encoders: Mapping[str, str], *flavours: str) -> FileLayout:
    """The layout of checkpoints in one file. ``prompt_width``: last size of the prompts that the UNet takes; ``encoders``: folder of a
    text encoder -> prefix of its keys; ``flavours``: those with this layout, or none for all that are named nowhere else."""
    prefixes = {"unet": NETWORK_PREFIX, "vae": VAE_PREFIXES[0], **encoders}
    mark = "transformer_blocks.0.attn2.to_k.weight"
    return FileLayout(title=title, mark=mark, mark_width=prompt_width, prefixes=MappingProxyType(prefixes), flavours=frozenset(flavours))


CONTROLNET_MATCHING = (
    *("in_channels", "block_out_channels", "layers_per_block", "cross_attention_dim"),
    *("addition_embed_type", "projection_class_embeddings_input_dim"),
)
CONTROLNET_SETTINGS: Mapping[str, ControlNetSetting] = MappingProxyType(
    {
        "conditioning_embedding_out_channels": ControlNetSetting(least=1, most=2048, count=4),
        "controlnet_conditioning_channel_order": ControlNetSetting(words=("rgb", "bgr")),
    }
)
"""The embedding of a control image halves its edges three times, to the size of latents: it has four widths."""


def controlnet(pipeline: str, parameters: Mapping[str, int]) -> ControlNetSpec:
    """The ControlNet of a UNet. ``parameters``: flavour -> number of its weights."""
    return ControlNetSpec(
        class_name="ControlNetModel", pipeline=pipeline, parameters=parameters, matching=CONTROLNET_MATCHING, settings=CONTROLNET_SETTINGS
    )


FOREIGN_NETWORKS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {"a model that projects its prompts": MappingProxyType({"encoder_hid_dim_type": "text_proj"})}
)
"""Networks of the same class, some with attention of the same width, whose prompts are states of a language model."""
UNPROJECTED_NETWORKS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "a model that takes prompts as they are": MappingProxyType(
            {"_class_name": "UNet2DConditionModel", "encoder_hid_dim_type": None}  # the latter is stated by newer files alone
        )
    }
)
"""Networks whose attention takes the states of text encoders without a projection."""
REPEATED_BLOCKS = ("BasicTransformerBlock",)


def distillation(base: str) -> DistillationSpec:
    """How distilled weights of a UNet are recognised. ``base``: the repository to train instead."""
    return DistillationSpec(
        base=base,
        schedulers=(
            MappingProxyType({"_class_name": "LCMScheduler"}),
            MappingProxyType({"_class_name": "TCDScheduler"}),
            MappingProxyType({"_class_name": "EulerAncestralDiscreteScheduler", "timestep_spacing": "trailing"}),  # Turbo's
        ),
        networks=(MappingProxyType({"time_cond_proj_dim": int}),),  # takes the guidance scale that it was distilled with
    )


SAMPLING = SamplingSpec(
    samplers=("ddim", "ddpm", "euler", "euler-a", "unipc", "dpm++"),
    options=frozenset({"inference_scheduler_timestep_spacing", "validation_guidance_rescale"}),
    multiple_px=8,
)
ADAPTERS = AdapterSpec(
    module_classes=MODULE_CLASSES,
    lycoris_start=LYCORIS_START,
    lora_targets=LORA_TARGETS,
    default_lora_target="attention",
    slider_targets=tuple(one for one in SLIDER_TARGETS if one != "conv_out"),  # its four outputs allow ranks up to 4
    lora_target_option="unet_lora_target",
    base_precisions=("int8-quanto", "int4-quanto", *ANY_FAMILY),
)
