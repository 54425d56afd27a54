"""Z-Image: a transformer with one stream for the tokens of prompt and image (Tongyi-MAI, 2025)."""

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
from trainer_engine.config.precisions import QUANTISED
from trainer_engine.config.text_states import TextStates

BASE, TURBO = "Tongyi-MAI/Z-Image", "Tongyi-MAI/Z-Image-Turbo"
ASSISTANTS = MappingProxyType(
    {
        "turbo": "ostris/zimage_turbo_training_adapter:zimage_turbo_training_adapter_v1.safetensors",
        "turbo-ostris-v2": "ostris/zimage_turbo_training_adapter:zimage_turbo_training_adapter_v2.safetensors",
    }
)
"""Distilled flavour -> the adapter that it is trained beside; both have the same weights."""
FLAVOURS = MappingProxyType({"base": BASE, "turbo": TURBO, "turbo-ostris-v2": TURBO, "ostris-de-turbo": "ostris/Z-Image-De-Turbo"})
ATTENTION = ("attention.to_q", "attention.to_k", "attention.to_v", "attention.to_out.0")

SPEC = FamilySpec(
    name="z_image",
    title="Z-Image",
    description="Flow-matching transformer of 6 billion parameters with a Qwen3 4B text encoder. The turbo flavours are distilled: "
    "they are trained beside an assistant adapter.",
    flavours=FLAVOURS,
    default_flavour="turbo-ostris-v2",
    model_types=("full", "lora"),
    objective="flow_matching",
    prediction_types=("flow_matching",),
    components=MappingProxyType(
        {"transformer": Component("transformer", "transformer.", Role.TRAINED), **frozen_components("vae", "text_encoder")}
    ),
    network_classes=("ZImageTransformer2DModel",),
    prompts=PromptSpec(
        states=(TextStates(width="cap_feat_dim"),),
        token_limit=512,
        text_encoders=("Qwen3 4B",),
        joins_sequence=True,
        mask="boolean",
        encoder_parameters=(4_022_468_096,),
        width=2560,
    ),
    latents=LatentSpec(
        alignment_px=64,
        channels=16,
        scale_factor_px=8,
        preview_decoder="madebyollin/taef1",
        autoencoder_classes=("AutoencoderKL",),
        scaling=Scaling(0.3611, 0.1159),
    ),
    repeated_blocks=("ZImageTransformerBlock",),
    distillation=DistillationSpec(
        base=BASE,
        flavours=frozenset(ASSISTANTS),
        restored=frozenset({"ostris-de-turbo"}),
        assistant=ASSISTANTS["turbo-ostris-v2"],
    ),
    sampling=SamplingSpec(samplers=("euler", "unipc", "dpm++")),
    adapters=AdapterSpec(
        module_classes=("Attention", "FeedForward", "ZImageTransformerBlock", "Linear"),
        lycoris_start=lokr_start(16, {"Attention": 16, "FeedForward": 8}),
        lora_targets=MappingProxyType({"attention": ATTENTION}),
        default_lora_target="attention",
        base_precisions=QUANTISED,
    ),
    aliases=("z-image", "zimage"),
    known_as=MappingProxyType(
        {"zimage": "base", "z_image": "base", "zimage_base": "base", "zimage_turbo": "turbo", "zimage_deturbo": "ostris-de-turbo"}
    ),
    companion=TURBO,
    activation_share=1.75,  # norms before and after attention and feed-forward, of queries and keys; a gate
    short_shares=(1.5, 1.17),
    poor_precisions=MappingProxyType({"fp16": "adapters are reported to learn nothing"}),
    defaults=MappingProxyType({"resolution": 1024, "validation_guidance": 4.0, "validation_num_inference_steps": 50}),
    flavour_defaults=MappingProxyType(
        {
            flavour: MappingProxyType(
                {"validation_guidance": 0.0, "validation_num_inference_steps": 8, "assistant_lora_path": ASSISTANTS[flavour]}
            )
            for flavour in ASSISTANTS
        }
    ),
    parameters=MappingProxyType(dict.fromkeys(FLAVOURS, 6_154_908_736)),
    licenses=MappingProxyType(dict.fromkeys(FLAVOURS, MappingProxyType({"license": "apache-2.0"}))),
    architectures=MappingProxyType(dict.fromkeys(FLAVOURS, "z-image")),
)
