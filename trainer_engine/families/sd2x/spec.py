"""Stable Diffusion 2: the UNet of version 1 with the text encoder OpenCLIP ViT-H."""

from __future__ import annotations

from types import MappingProxyType

from trainer_engine.config.family_costs import AutoencoderFacts
from trainer_engine.config.family_parts import LatentSpec, PromptSpec, Scaling, frozen_components
from trainer_engine.config.family_spec import FamilySpec
from trainer_engine.config.text_states import TextStates
from trainer_engine.families.common import unet_facts

FLAVOURS = MappingProxyType(
    {
        "2.1": "stabilityai/stable-diffusion-2-1",
        "2.0": "stabilityai/stable-diffusion-2-0",
        "digitaldiffusion": "Junglerally/Digital-Diffusion",
        "pseudoflex-v2": "bghira/pseudo-flex-v2",
        "pseudojourney": "bghira/pseudo-journey-v2",
    }
)
SPEC = FamilySpec(
    name="sd2x",
    title="Stable Diffusion 2",
    description="UNet of 866 million parameters with an OpenCLIP ViT-H text encoder, trained at 768 pixels to predict the velocity.",
    flavours=FLAVOURS,
    default_flavour="pseudoflex-v2",
    model_types=("full", "lora"),
    objective="v_prediction",
    prediction_types=("v_prediction", "epsilon"),
    components=MappingProxyType(
        {
            "unet": unet_facts.UNET,
            **frozen_components("vae"),
            "text_encoder": unet_facts.clip_component("text_encoder", "lora_te_", unet_facts.CLIP_H_PARAMETERS),
        }
    ),
    network_classes=("UNet2DConditionModel",),
    foreign_networks=unet_facts.FOREIGN_NETWORKS,
    prompts=PromptSpec(
        states=(TextStates(width="cross_attention_dim"),),
        clip_folders=("text_encoder",),
        token_limit=77,
        text_encoders=("OpenCLIP ViT-H/14",),
        width=1024,
        stores_padding=True,
    ),
    latents=LatentSpec(
        alignment_px=64,
        channels=4,
        scale_factor_px=8,
        preview_decoder="madebyollin/taesd",
        autoencoder=AutoencoderFacts(tile_px=768),
        autoencoder_classes=("AutoencoderKL",),
        scaling=Scaling(0.18215),
    ),
    sampling=unet_facts.SAMPLING,
    repeated_blocks=unet_facts.REPEATED_BLOCKS,
    distillation=unet_facts.distillation(FLAVOURS["2.1"]),
    adapters=unet_facts.ADAPTERS,
    file_layouts=(unet_facts.file_layout("Stable Diffusion 2", 1024, {"text_encoder": "cond_stage_model.model."}),),
    aliases=("sd21", "stable-diffusion-2"),
    known_as=MappingProxyType(
        {
            "sd2": "2.1",
            "sd21": "2.1",
            "v2_1": "2.1",
            "stable_diffusion_21": "2.1",
            "stable_diffusion_20": "2.0",
        }
    ),
    architectures=MappingProxyType(dict.fromkeys(FLAVOURS, "stable-diffusion-v2-768-v")),
    licenses=MappingProxyType(dict.fromkeys(FLAVOURS, MappingProxyType({"license": "openrail++"}))),
    defaults=MappingProxyType({"resolution": 768, "validation_guidance": 7.5, "validation_guidance_rescale": 0.7}),
    convolution_share=0.652,
    controlnet=unet_facts.controlnet("StableDiffusionControlNetPipeline", MappingProxyType(dict.fromkeys(FLAVOURS, 364_228_240))),
    parameters=MappingProxyType(dict.fromkeys(FLAVOURS, 865_910_724)),
)
