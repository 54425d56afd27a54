"""Stable Diffusion XL: a UNet with two CLIP text encoders that knows the size and the crop of its images (Podell et al., 2023)."""

from __future__ import annotations

from types import MappingProxyType

from trainer_engine.config.family_parts import LatentSpec, PromptSpec, Scaling, StagesSpec, frozen_components
from trainer_engine.config.family_spec import FamilySpec
from trainer_engine.config.text_states import TextStates
from trainer_engine.families.common import unet_facts

FLAVOURS = MappingProxyType(
    {
        "base-1.0": "stabilityai/stable-diffusion-xl-base-1.0",
        "base-0.9": "stabilityai/stable-diffusion-xl-base-0.9",
        "refiner-1.0": "stabilityai/stable-diffusion-xl-refiner-1.0",
        "refiner-0.9": "stabilityai/stable-diffusion-xl-refiner-0.9",
    }
)
REFINERS = frozenset({"refiner-1.0", "refiner-0.9"})
"""Flavours without the first text encoder, whose network knows the aesthetic score of an image in place of its size in training."""
REFINER_TITLE = "Stable Diffusion XL refiner"
SPEC = FamilySpec(
    name="sdxl",
    title="Stable Diffusion XL",
    description="UNet of 2.6 billion parameters with CLIP ViT-L and OpenCLIP ViT-G text encoders, trained at 1024 pixels.",
    flavours=FLAVOURS,
    default_flavour="base-1.0",
    model_types=("full", "lora"),
    objective="epsilon",
    prediction_types=("epsilon", "v_prediction"),
    components=MappingProxyType(
        {
            "unet": unet_facts.UNET,
            **frozen_components("vae"),
            "text_encoder": unet_facts.clip_component("text_encoder", "lora_te1_", unet_facts.CLIP_L_PARAMETERS),
            "text_encoder_2": unet_facts.clip_component("text_encoder_2", "lora_te2_", unet_facts.CLIP_G_PARAMETERS, has_projection=True),
        }
    ),
    network_classes=("UNet2DConditionModel",),
    foreign_networks=unet_facts.FOREIGN_NETWORKS,
    prompts=PromptSpec(
        states=(TextStates(width="cross_attention_dim", folders=("text_encoder", "text_encoder_2")),),
        token_limit=77,
        text_encoders=("CLIP ViT-L/14", "OpenCLIP ViT-bigG/14"),
        text_encoder_folders=("text_encoder", "text_encoder_2"),
        clip_folders=("text_encoder", "text_encoder_2"),
        reads_penultimate=True,
        width=2048,
        pooled=1280,
        flavour_optional_folders=MappingProxyType(dict.fromkeys(sorted(REFINERS), ("text_encoder", "tokenizer"))),
        stores_padding=True,
    ),
    latents=LatentSpec(
        alignment_px=64,
        channels=4,
        scale_factor_px=8,
        preview_decoder="madebyollin/taesdxl",
        autoencoder_classes=("AutoencoderKL",),
        scaling=Scaling(0.13025),
    ),
    sampling=unet_facts.SAMPLING,
    repeated_blocks=unet_facts.REPEATED_BLOCKS,
    distillation=unet_facts.distillation(FLAVOURS["base-1.0"]),
    adapters=unet_facts.ADAPTERS,
    sees_image_sizes=True,
    file_layouts=(
        unet_facts.file_layout(
            "Stable Diffusion XL",
            2048,
            {"text_encoder": "conditioner.embedders.0.transformer.", "text_encoder_2": "conditioner.embedders.1.model."},
        ),
        unet_facts.file_layout(REFINER_TITLE, 1280, {"text_encoder_2": "conditioner.embedders.0.model."}, *REFINERS),
    ),
    aliases=("stable-diffusion-xl",),
    known_as=MappingProxyType(
        {
            "sdxl": "base-1.0",
            "xl": "base-1.0",
            "sd_xl": "base-1.0",
            "sdxl_base": "base-1.0",
            "pony": "base-1.0",
            "illustrious": "base-1.0",
            "stable_diffusion_xl_10_base": "base-1.0",
        }
    ),
    architectures=MappingProxyType({name: f"stable-diffusion-xl-v1-{'refiner' if name in REFINERS else 'base'}" for name in FLAVOURS}),
    licenses=MappingProxyType(dict.fromkeys(("base-1.0", "refiner-1.0"), MappingProxyType({"license": "openrail++"}))),
    defaults=MappingProxyType({"resolution": 1024, "validation_guidance": 4.2}),
    flavour_defaults=MappingProxyType(dict.fromkeys(sorted(REFINERS), MappingProxyType({"refiner_training": True}))),
    convolution_share=0.13,
    controlnet=unet_facts.controlnet(
        "StableDiffusionXLControlNetPipeline", MappingProxyType(dict.fromkeys(sorted(FLAVOURS.keys() - REFINERS), 1_251_014_160))
    ),
    stages=StagesSpec(
        mode="sdxl_validation_pipeline_mode",
        models=("sdxl_validation_stage1_model", "sdxl_validation_stage2_model"),
        flavours=MappingProxyType({"base-1.0": "refiner-1.0", "base-0.9": "refiner-0.9"}),
        usual="base-1.0",
    ),
    parameters=MappingProxyType({name: 2_259_526_660 if name in REFINERS else 2_567_463_684 for name in FLAVOURS}),
)
