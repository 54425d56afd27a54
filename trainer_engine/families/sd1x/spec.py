"""Stable Diffusion 1: the UNet with CLIP conditioning (Rombach et al., 2022)."""

from __future__ import annotations

from types import MappingProxyType

from trainer_engine.config.family_costs import AutoencoderFacts
from trainer_engine.config.family_parts import LatentSpec, PromptSpec, Scaling, frozen_components
from trainer_engine.config.family_spec import FamilySpec
from trainer_engine.config.text_states import TextStates
from trainer_engine.families.common import unet_facts

FLAVOURS = MappingProxyType(
    {
        "1.5": "stable-diffusion-v1-5/stable-diffusion-v1-5",
        "1.4": "CompVis/stable-diffusion-v1-4",
        "dreamshaper": "Lykon/dreamshaper-8",
    }
)
SPEC = FamilySpec(
    name="sd1x",
    title="Stable Diffusion 1",
    description="UNet of 860 million parameters with a CLIP ViT-L/14 text encoder, trained at 512 pixels.",
    flavours=FLAVOURS,
    default_flavour="1.5",
    model_types=("full", "lora"),
    objective="epsilon",
    prediction_types=("epsilon", "v_prediction"),
    components=MappingProxyType(
        {
            "unet": unet_facts.UNET,
            **frozen_components("vae"),
            "text_encoder": unet_facts.clip_component("text_encoder", "lora_te_", unet_facts.CLIP_L_PARAMETERS),
        }
    ),
    network_classes=("UNet2DConditionModel",),
    foreign_networks=unet_facts.FOREIGN_NETWORKS,
    prompts=PromptSpec(
        states=(TextStates(width="cross_attention_dim"),),
        token_limit=77,
        text_encoders=("CLIP ViT-L/14",),
        width=768,
        stores_padding=True,
        clip_folders=("text_encoder",),
    ),
    latents=LatentSpec(
        alignment_px=64,
        channels=4,
        scale_factor_px=8,
        preview_decoder="madebyollin/taesd",
        autoencoder=AutoencoderFacts(tile_px=512),
        autoencoder_classes=("AutoencoderKL",),
        scaling=Scaling(0.18215),
    ),
    sampling=unet_facts.SAMPLING,
    repeated_blocks=unet_facts.REPEATED_BLOCKS,
    distillation=unet_facts.distillation(FLAVOURS["1.5"]),
    adapters=unet_facts.ADAPTERS,
    file_layouts=(unet_facts.file_layout("Stable Diffusion 1", 768, {"text_encoder": "cond_stage_model.transformer."}),),
    aliases=("sd15", "stable-diffusion-1"),
    known_as=MappingProxyType(
        {
            "sd1": "1.5",
            "sd15": "1.5",
            "v1_5": "1.5",
            "sd_v1_5": "1.5",
            "stable_diffusion_15": "1.5",
        }
    ),
    architectures=MappingProxyType(dict.fromkeys(FLAVOURS, "stable-diffusion-v1")),
    licenses=MappingProxyType(dict.fromkeys(FLAVOURS, MappingProxyType({"license": "creativeml-openrail-m"}))),
    defaults=MappingProxyType({"resolution": 512, "validation_guidance": 7.5}),
    convolution_share=0.685,
    controlnet=unet_facts.controlnet("StableDiffusionControlNetPipeline", MappingProxyType(dict.fromkeys(FLAVOURS, 361_279_120))),
    parameters=MappingProxyType(dict.fromkeys(FLAVOURS, 859_520_964)),
)
