"""ERNIE-Image: a transformer with one stream for the tokens of image and prompt; Ministral 3 reads the prompts (Baidu, 2026)."""

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
    frozen_components,
    lokr_start,
)
from trainer_engine.config.family_spec import FamilySpec
from trainer_engine.config.precisions import QUANTISED
from trainer_engine.config.routing import RoutingSpec
from trainer_engine.config.text_states import TextStates

BASE, TURBO = "base", "turbo"
FLAVOURS = MappingProxyType({BASE: "baidu/ERNIE-Image", TURBO: "baidu/ERNIE-Image-Turbo"})
ATTENTION = tuple(f"self_attention.{layer}" for layer in ("to_q", "to_k", "to_v", "to_out.0"))

SPEC = FamilySpec(
    name="ernie",
    title="ERNIE-Image",
    description="Flow-matching transformer of 8 billion parameters with Ministral 3 3B as its text encoder. Captions are read as they are, "
    "without the model that rewrites prompts. The turbo flavour is distilled to 8 steps.",
    flavours=FLAVOURS,
    default_flavour=BASE,
    model_types=("full", "lora"),
    objective="flow_matching",
    prediction_types=("flow_matching",),
    components=MappingProxyType(
        {
            "transformer": Component("transformer", "transformer.", Role.TRAINED, comfyui_takes_alpha=False),
            **frozen_components("vae", "text_encoder"),
        }
    ),
    network_classes=("ErnieImageTransformer2DModel",),
    prompts=PromptSpec(
        states=(TextStates(width="text_in_dim", kind="mistral3"),),
        token_limit=2048,
        text_encoders=("Ministral 3 3B",),
        joins_sequence=True,
        mask="boolean",
        encoder_parameters=(3_429_006_336,),
        width=3072,
    ),
    latents=LatentSpec(
        alignment_px=16,
        channels=128,
        scale_factor_px=16,
        previews_in_full=True,
        autoencoder_classes=("AutoencoderKLFlux2",),
    ),
    repeated_blocks=("ErnieImageSharedAdaLNBlock",),
    routing=RoutingSpec(
        blocks=("layers",),
        tokens="x",
        axis=0,
        along=MappingProxyType({"rotary_pos_emb": 1, "attention_mask": -1}),
        cells=(1, 1),
    ),
    distillation=DistillationSpec(base=FLAVOURS[BASE], flavours=frozenset({TURBO}), repositories=frozenset({FLAVOURS[TURBO]})),
    sampling=SamplingSpec(samplers=("euler", "unipc", "dpm++")),
    adapters=AdapterSpec(
        module_classes=("ErnieImageAttention", "ErnieImageFeedForward", "ErnieImageSharedAdaLNBlock", "Linear"),
        class_aliases=MappingProxyType({"Attention": ("ErnieImageAttention",), "FeedForward": ("ErnieImageFeedForward",)}),
        lycoris_start=lokr_start(16, {"ErnieImageAttention": 16, "ErnieImageFeedForward": 8}),
        lora_targets=MappingProxyType({"attention": ATTENTION}),
        default_lora_target="attention",
        base_precisions=QUANTISED,
    ),
    aliases=("ernie-image",),
    known_as=MappingProxyType({"ernie": BASE, "ernie_image": BASE, "ernie_image_turbo": TURBO}),
    activation_share=2.08,  # norms before attention and feed-forward, of queries and keys; modulations and gates in float32
    short_shares=(0.95, 1.1),
    defaults=MappingProxyType({"resolution": 1024, "validation_guidance": 4.0, "validation_num_inference_steps": 50}),
    flavour_defaults=MappingProxyType({TURBO: MappingProxyType({"validation_guidance": 1.0, "validation_num_inference_steps": 8})}),
    parameters=MappingProxyType(dict.fromkeys(FLAVOURS, 8_033_490_048)),
    licenses=MappingProxyType(dict.fromkeys(FLAVOURS, MappingProxyType({"license": "apache-2.0"}))),
)
