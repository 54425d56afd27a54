"""Flux.2: a rectified-flow transformer that reads prompts through a language model (Black Forest Labs, 2025)."""

from __future__ import annotations

from types import MappingProxyType

from trainer_engine.config.adapters.other_names import OriginalNames
from trainer_engine.config.distillation import DistillationSpec
from trainer_engine.config.family_costs import TextEncoderFacts
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
from trainer_engine.config.token_splitting import SplittingSpec

KLEIN_BASE = "black-forest-labs/FLUX.2-klein-base-9B"
FLAVOURS = MappingProxyType(
    {
        "dev": "black-forest-labs/FLUX.2-dev",
        "klein-4b": "black-forest-labs/FLUX.2-klein-base-4B",
        "klein-9b": KLEIN_BASE,
        "klein-4b-distilled": "black-forest-labs/FLUX.2-klein-4B",
        "klein-9b-distilled": "black-forest-labs/FLUX.2-klein-9B",
    }
)
DISTILLED = ("klein-4b-distilled", "klein-9b-distilled")
QWEN3_4B = TextEncoderFacts(names=("Qwen3 4B",), parameters=(3_215_021_568,), layers=28, width=7_680)
ATTENTION = ("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0", "attn.to_qkv_mlp_proj")
AROUND_BLOCKS = (
    (r"(double_stream_modulation_(?:img|txt)|single_stream_modulation)\.linear", r"\1.lin"),
    (r"time_guidance_embed\.timestep_embedder\.linear_1", "time_in.in_layer"),
    (r"time_guidance_embed\.timestep_embedder\.linear_2", "time_in.out_layer"),
    (r"time_guidance_embed\.guidance_embedder\.linear_1", "guidance_in.in_layer"),
    (r"time_guidance_embed\.guidance_embedder\.linear_2", "guidance_in.out_layer"),
)
"""Layers around the blocks, of which ComfyUI does not know the names in diffusers."""


def non_commercial(name: str) -> MappingProxyType[str, str]:
    """The licence of the weights of a flavour, as the head of a model card states it."""
    link = f"https://huggingface.co/{FLAVOURS[name]}/blob/main/LICENSE.md"
    return MappingProxyType({"license": "other", "license_name": "flux-non-commercial-license", "license_link": link})


KLEIN_LAYERS, DEV_LAYERS = (9, 18, 27), (10, 20, 30)
"""The states of the text encoder that the network takes, side by side."""

SPEC = FamilySpec(
    name="flux2",
    title="Flux.2",
    description="Rectified-flow transformer that edits with any number of reference images: dev has 32 billion parameters and a Mistral "
    "text encoder, klein has 4 or 9 billion and Qwen3.",
    flavours=FLAVOURS,
    default_flavour="klein-9b",
    model_types=("full", "lora"),
    objective="flow_matching",
    prediction_types=("flow_matching",),
    components=MappingProxyType(
        {
            "transformer": Component(
                "transformer",
                "transformer.",
                Role.TRAINED,
                comfyui_prefix="transformer.",
                comfyui_takes_alpha=False,
                original_names=OriginalNames(mark="double_stream_modulation_img.linear", names=AROUND_BLOCKS),
            ),
            **frozen_components("vae", "text_encoder"),
        }
    ),
    network_classes=("Flux2Transformer2DModel",),
    prompts=PromptSpec(
        states=(
            TextStates(
                width="joint_attention_dim",
                kind="qwen3",
                flavour_kinds=MappingProxyType({"dev": "mistral3"}),
                layers=KLEIN_LAYERS,
                flavour_layers=MappingProxyType({"dev": DEV_LAYERS}),
                side_by_side=True,
            ),
        ),
        token_limit=512,
        text_encoders=("Qwen3 8B",),
        joins_sequence=True,
        encoder_parameters=(6_024_834_048,),
        encoder_layers=28,
        width=12_288,
        flavour_encoders=MappingProxyType(
            {
                "dev": TextEncoderFacts(names=("Mistral Small 3",), parameters=(17_899_514_880,), layers=31, width=15_360),
                **dict.fromkeys(("klein-4b", "klein-4b-distilled"), QWEN3_4B),
            }
        ),
        stores_padding=True,
    ),
    latents=LatentSpec(
        alignment_px=16,
        channels=128,
        scale_factor_px=16,
        previews_in_full=True,
        autoencoder_classes=("AutoencoderKLFlux2",),
    ),
    splitting=SplittingSpec(cells=1, splits_prompt=True),
    repeated_blocks=("Flux2TransformerBlock", "Flux2SingleTransformerBlock"),
    distillation=DistillationSpec(
        base=KLEIN_BASE,
        flavours=frozenset(DISTILLED),
        repositories=frozenset(FLAVOURS[flavour] for flavour in DISTILLED),
        pipelines=({"is_distilled": True},),
    ),
    sampling=SamplingSpec(samplers=("euler", "unipc", "dpm++")),
    adapters=AdapterSpec(
        module_classes=(
            "Flux2Attention",
            "Flux2ParallelSelfAttention",
            "Flux2FeedForward",
            "Flux2TransformerBlock",
            "Flux2SingleTransformerBlock",
            "Linear",
        ),
        class_aliases=MappingProxyType(
            {"Attention": ("Flux2Attention", "Flux2ParallelSelfAttention"), "FeedForward": ("Flux2FeedForward",)}
        ),
        lycoris_start=lokr_start(16, {"Flux2Attention": 16, "Flux2FeedForward": 8, "Flux2ParallelSelfAttention": 16}),
        lora_targets=MappingProxyType({"attention": ATTENTION}),
        default_lora_target="attention",
        base_precisions=QUANTISED,
    ),
    aliases=("flux.2",),
    known_as=MappingProxyType(
        {
            "flux2": "dev",
            "flux2_dev": "dev",
            "flux2_klein_4b": "klein-4b",
            "flux2_klein_9b": "klein-9b",
            "flux_2_klein_base_4b": "klein-4b",
            "flux_2_klein_base_9b": "klein-9b",
        }
    ),
    activation_share=1.43,
    short_shares=(1.27, 1.02),
    defaults=MappingProxyType({"resolution": 1024, "validation_guidance": 4.0, "validation_num_inference_steps": 50}),
    flavour_defaults=MappingProxyType(
        {
            "dev": MappingProxyType({"validation_num_inference_steps": 28}),
            **dict.fromkeys(DISTILLED, MappingProxyType({"validation_guidance": 1.0, "validation_num_inference_steps": 4})),
        }
    ),
    parameters=MappingProxyType(
        {
            "dev": 32_223_281_152,
            **dict.fromkeys(("klein-4b", "klein-4b-distilled"), 3_875_544_576),
            **dict.fromkeys(("klein-9b", "klein-9b-distilled"), 9_078_581_248),
        }
    ),
    architectures=MappingProxyType(
        {"dev": "flux-2-dev", **{flavour: "flux-2-klein" for flavour in FLAVOURS if flavour != "dev"}},
    ),
    licenses=MappingProxyType(
        {
            **{flavour: non_commercial(flavour) for flavour in ("dev", "klein-9b", "klein-9b-distilled")},
            **dict.fromkeys(("klein-4b", "klein-4b-distilled"), MappingProxyType({"license": "apache-2.0"})),
        }
    ),
    takes_references=frozenset(FLAVOURS),
)
