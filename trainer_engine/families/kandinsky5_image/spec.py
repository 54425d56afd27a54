"""Kandinsky 5 for images: a video transformer with one frame; Qwen2.5-VL and CLIP read the prompts (Kandinsky Lab, 2025)."""

from __future__ import annotations

from types import MappingProxyType

from trainer_engine.config.distillation import DistillationSpec
from trainer_engine.config.family_parts import (
    AdapterSpec,
    Component,
    LatentSpec,
    PromptSpec,
    Role,
    SamplingSpec,
    Scaling,
    frozen_components,
    lokr_start,
)
from trainer_engine.config.family_spec import FamilySpec
from trainer_engine.config.positions import PositionSpec
from trainer_engine.config.precisions import QUANTISED
from trainer_engine.config.routing import RoutingSpec
from trainer_engine.config.text_states import TextStates

FLAVOURS = MappingProxyType(
    {
        "t2i-lite-sft": "kandinskylab/Kandinsky-5.0-T2I-Lite-sft-Diffusers",
        "t2i-lite-pretrain": "kandinskylab/Kandinsky-5.0-T2I-Lite-pretrain-Diffusers",
        "i2i-lite-sft": "kandinskylab/Kandinsky-5.0-I2I-Lite-sft-Diffusers",
        "i2i-lite-pretrain": "kandinskylab/Kandinsky-5.0-I2I-Lite-pretrain-Diffusers",
    }
)
EDITS = frozenset({"i2i-lite-sft", "i2i-lite-pretrain"})
"""Flavours that see a reference: its latents are further channels of the image, and Qwen2.5-VL looks at it."""
BLOCKS = 50
"""Those of the image; the two blocks of the prompt are others."""
ATTENTION = ("to_query", "to_key", "to_value")
OF_THE_IMAGE = tuple(f"visual_transformer_blocks.{block}.self_attention.{layer}" for block in range(BLOCKS) for layer in ATTENTION)

SPEC = FamilySpec(
    name="kandinsky5_image",
    title="Kandinsky 5 Image",
    description="Flow-matching transformer of 6 billion parameters with cross-attention to Qwen2.5-VL 7B, and CLIP L for the prompt as a "
    "whole. The pretrain flavours are the models before their fine-tuning on chosen images; those of i2i edit a reference.",
    flavours=FLAVOURS,
    default_flavour="t2i-lite-sft",
    model_types=("full", "lora"),
    objective="flow_matching",
    prediction_types=("flow_matching",),
    components=MappingProxyType(
        {
            "transformer": Component("transformer", "transformer.", Role.TRAINED, comfyui_prefix="transformer.", comfyui_takes_alpha=False),
            **frozen_components("vae", "text_encoder", "text_encoder_2"),
        }
    ),
    network_classes=("Kandinsky5Transformer3DModel",),
    flavour_networks=MappingProxyType({flavour: MappingProxyType({"visual_cond": flavour in EDITS}) for flavour in FLAVOURS}),
    prompts=PromptSpec(
        states=(
            TextStates(width="in_text_dim", kind="qwen2_5_vl"),
            TextStates(width="in_text_dim2", folders=("text_encoder_2",)),
        ),
        token_limit=512,
        flavour_token_limits=MappingProxyType(dict.fromkeys(EDITS, 1024)),  # with those of the reference
        text_encoders=("Qwen2.5-VL 7B", "CLIP L/14"),
        text_encoder_folders=("text_encoder", "text_encoder_2"),
        limited_tokenizer="tokenizer",
        encoder_parameters=(7_070_619_136, 123_060_480),
        width=3584,
        pooled=768,
    ),
    latents=LatentSpec(
        alignment_px=64,
        channels=16,
        scale_factor_px=8,
        preview_decoder="madebyollin/taef1",
        autoencoder_classes=("AutoencoderKL",),
        scaling=Scaling(0.3611, 0.1159),  # as its configuration states it; the network was trained without the shift
    ),
    passes_alone=True,
    positions=PositionSpec(published=128, counts_an_edge=True),
    repeated_blocks=("Kandinsky5TransformerEncoderBlock", "Kandinsky5TransformerDecoderBlock"),
    routing=RoutingSpec(blocks=("visual_transformer_blocks",), tokens="visual_embed", along=MappingProxyType({"rope": 1})),
    takes_references=EDITS,
    needs_references=EDITS,
    most_references=1,
    references_in_place=True,
    distillation=DistillationSpec(base=FLAVOURS["t2i-lite-sft"], bases=MappingProxyType(dict.fromkeys(EDITS, FLAVOURS["i2i-lite-sft"]))),
    sampling=SamplingSpec(samplers=("euler", "unipc", "dpm++")),
    adapters=AdapterSpec(
        module_classes=(
            "Kandinsky5Attention",
            "Kandinsky5FeedForward",
            "Kandinsky5TransformerEncoderBlock",
            "Kandinsky5TransformerDecoderBlock",
            "Linear",
        ),
        class_aliases=MappingProxyType({"Attention": ("Kandinsky5Attention",), "FeedForward": ("Kandinsky5FeedForward",)}),
        lycoris_start=lokr_start(16, {"Kandinsky5Attention": 16, "Kandinsky5FeedForward": 8}),
        lora_targets=MappingProxyType({"attention": ATTENTION}),
        default_lora_target="attention",
        slider_targets=OF_THE_IMAGE,
        base_precisions=QUANTISED,
    ),
    aliases=("kandinsky5-image",),
    activation_share=1.38,
    short_shares=(1.3, 1.3),
    defaults=MappingProxyType({"resolution": 1024, "validation_guidance": 3.5, "validation_num_inference_steps": 50}),
    parameters=MappingProxyType({flavour: 6_022_254_656 if flavour in EDITS else 6_022_080_576 for flavour in FLAVOURS}),
    licenses=MappingProxyType(dict.fromkeys(FLAVOURS, MappingProxyType({"license": "mit"}))),
)
