"""Ideogram 4: a transformer with one stream for the tokens of prompt and image, which Qwen3-VL 8B reads (Ideogram, 2026)."""

from __future__ import annotations

from types import MappingProxyType

from trainer_engine.config.adapters.other_names import JointLayer, OriginalNames
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
from trainer_engine.config.text_states import TextStates

FLAVOURS = MappingProxyType({"fp8": "ideogram-ai/ideogram-4-fp8", "nf4": "ideogram-ai/ideogram-4-nf4"})
UNCONDITIONAL = "unconditional_transformer"
"""Subfolder of the network that makes the unguided prediction. It sees no prompt, and no run trains it."""
TEXT_LAYERS = (1, 4, 7, 10, 13, 16, 19, 22, 25, 28, 31, 34, 36)
"""The states of the text encoder that the network takes, beginning with its input; the last ones before the norm at its end."""
TEXT_WIDTH = 4096
ATTENTION = ("attention.to_q", "attention.to_k", "attention.to_v", "attention.to_out.0")
ORIGINAL_NAMES = OriginalNames(
    mark="llm_cond_proj",
    names=((r"(layers\.\d+\.attention)\.to_out\.0", r"\1.o"),),
    joint=(JointLayer(name=r"\1.qkv", stem=r"(layers\.\d+\.attention)\.", parts=("to_q", "to_k", "to_v"), shares=(1, 1, 1)),),
)
"""Queries, keys and values are one layer in the published code and in ComfyUI."""
LICENSE = MappingProxyType(
    {
        "license": "other",
        "license_name": "ideogram-4-non-commercial",
        "license_link": f"https://huggingface.co/{FLAVOURS['fp8']}/blob/main/LICENSE.md",
    }
)

SPEC = FamilySpec(
    name="ideogram",
    title="Ideogram 4",
    description="Flow-matching transformer of 9 billion parameters that takes thirteen layers of a Qwen3-VL 8B text encoder and captions "
    "in JSON. Its weights are published in 8 and 4 bits only; a second network, which is never trained, makes the unguided prediction.",
    flavours=FLAVOURS,
    default_flavour="fp8",
    model_types=("full", "lora"),
    objective="flow_matching",
    prediction_types=("flow_matching",),
    components=MappingProxyType(
        {
            "transformer": Component("transformer", "transformer.", Role.TRAINED, original_names=ORIGINAL_NAMES),
            **frozen_components(UNCONDITIONAL, "vae", "text_encoder"),
        }
    ),
    network_classes=("Ideogram4Transformer2DModel",),
    prompts=PromptSpec(
        states=(TextStates(width="llm_features_dim", kind="qwen3_vl", layers=TEXT_LAYERS, side_by_side=True),),
        token_limit=2048,
        text_encoders=("Qwen3-VL 8B",),
        joins_sequence=True,
        mask="boolean",
        encoder_parameters=(7_568_405_504,),
        width=len(TEXT_LAYERS) * TEXT_WIDTH,
        stores_short=True,
    ),
    latents=LatentSpec(
        alignment_px=16, channels=128, scale_factor_px=16, previews_in_full=True, autoencoder_classes=("AutoencoderKLFlux2",)
    ),
    repeated_blocks=("Ideogram4TransformerBlock",),
    sampling=SamplingSpec(samplers=("euler",)),
    adapters=AdapterSpec(
        module_classes=("Ideogram4Attention", "Ideogram4MLP", "Ideogram4TransformerBlock", "Linear"),
        class_aliases=MappingProxyType({"Attention": ("Ideogram4Attention",), "FeedForward": ("Ideogram4MLP",)}),
        lycoris_start=lokr_start(16, {"Ideogram4Attention": 16, "Ideogram4MLP": 8}),
        lora_targets=MappingProxyType({"attention": ATTENTION}),
        default_lora_target="attention",
        base_precisions=QUANTISED,
    ),
    aliases=("ideogram4", "ideogram-4"),
    known_as=MappingProxyType(
        {"ideogram": "fp8", "ideogram4": "fp8", "ideogram_4": "fp8", "ideogram_4_fp8": "fp8", "ideogram_4_nf4": "nf4"}
    ),
    published_precisions=MappingProxyType({"fp8": "fp8-native", "nf4": "nf4-bnb"}),
    widening_option="ideogram_fp8_base_upcast",
    second_network_option="ideogram_load_unconditional_transformer",
    activation_share=2.08,  # norms before and after attention and feed-forward, of queries and keys; a gated unit, rotated queries
    short_shares=(1.27, 1.11),
    defaults=MappingProxyType(
        {
            "resolution": 1024,
            "flow_schedule_shift": 0.0,
            "flow_schedule_auto_shift": True,
            "caption_dropout_probability": 0.0,
            "validation_guidance": 7.0,
            "validation_num_inference_steps": 48,
        }
    ),
    parameters=MappingProxyType(dict.fromkeys(FLAVOURS, 9_279_288_448)),
    licenses=MappingProxyType(dict.fromkeys(FLAVOURS, LICENSE)),
)
