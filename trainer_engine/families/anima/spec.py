"""Anima: the transformer of Cosmos Predict 2, trained on illustrations (CircleStone Labs and Comfy Org, 2026)."""

from __future__ import annotations

from types import MappingProxyType

from trainer_engine.config.adapters.other_names import OriginalNames
from trainer_engine.config.distillation import DistillationSpec
from trainer_engine.config.family_costs import CAUSAL_AUTOENCODER
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
from trainer_engine.config.one_file.layout import FileLayout
from trainer_engine.config.precisions import QUANTISED
from trainer_engine.config.routing import RoutingSpec
from trainer_engine.config.text_states import TextStates

BASE = "circlestone-labs/Anima-Base-v1.0-Diffusers"
FLAVOURS = MappingProxyType({"base-v1.0": BASE, "release": BASE})
T5_TOKENIZER, CONDITIONER = "t5_tokenizer", "text_conditioner"
"""Subfolders of the tokenizer and of the network that make of Qwen3's states what the transformer takes."""
NAMES = (
    (r"transformer_blocks\.(\d+)\.norm1\.linear_([12])", r"blocks.\1.adaln_modulation_self_attn.\2"),
    (r"transformer_blocks\.(\d+)\.norm2\.linear_([12])", r"blocks.\1.adaln_modulation_cross_attn.\2"),
    (r"transformer_blocks\.(\d+)\.norm3\.linear_([12])", r"blocks.\1.adaln_modulation_mlp.\2"),
    (r"transformer_blocks\.(\d+)\.attn1\.to_([qkv])", r"blocks.\1.self_attn.\2_proj"),
    (r"transformer_blocks\.(\d+)\.attn1\.to_out\.0", r"blocks.\1.self_attn.output_proj"),
    (r"transformer_blocks\.(\d+)\.attn2\.to_([qkv])", r"blocks.\1.cross_attn.\2_proj"),
    (r"transformer_blocks\.(\d+)\.attn2\.to_out\.0", r"blocks.\1.cross_attn.output_proj"),
    (r"transformer_blocks\.(\d+)\.ff\.net\.0\.proj", r"blocks.\1.mlp.layer1"),
    (r"transformer_blocks\.(\d+)\.ff\.net\.2", r"blocks.\1.mlp.layer2"),
    (r"patch_embed\.proj", "x_embedder.proj.1"),
    (r"time_embed\.t_embedder\.linear_([12])", r"t_embedder.1.linear_\1"),
    (r"norm_out\.linear_([12])", r"final_layer.adaln_modulation.\1"),
    ("proj_out", "final_layer.linear"),
)
"""Layer in diffusers -> in the code of its publisher, whose names ComfyUI and most other trainers use."""
ORIGINAL_NAMES = OriginalNames(mark="time_embed.t_embedder.linear_1", names=NAMES)
LAYERS = ("to_q", "to_k", "to_v", "to_out.0")
TERMS = MappingProxyType(
    {
        "license": "other",
        "license_name": "circlestone-labs-non-commercial-license",
        "license_link": "https://huggingface.co/circlestone-labs/Anima/blob/main/LICENSE.md",
    }
)

SPEC = FamilySpec(
    name="anima",
    title="Anima",
    description="Flow-matching transformer of 2 billion parameters for illustrations, with a Qwen3 0.6B text encoder. Its text "
    "conditioner, which makes of Qwen3's states one for each token of T5, stays frozen.",
    flavours=FLAVOURS,
    default_flavour="base-v1.0",
    other_flavours=("preview", "preview-2", "preview-3", "gazingstars123-2.9b"),
    model_types=("full", "lora"),
    objective="flow_matching",
    prediction_types=("flow_matching",),
    components=MappingProxyType(
        {
            "transformer": Component("transformer", "transformer.", Role.TRAINED, original_names=ORIGINAL_NAMES, comfyui_takes_alpha=False),
            **frozen_components("vae", "text_encoder", CONDITIONER),
        }
    ),
    file_layouts=(FileLayout(title="Anima", mark=".adaln_modulation_self_attn.1."),),
    network_classes=("CosmosTransformer3DModel",),
    prompts=PromptSpec(
        states=(TextStates(width="source_dim", reader=CONDITIONER),),
        token_limit=512,
        text_encoders=("Qwen3 0.6B",),
        tokenizers=("tokenizer", T5_TOKENIZER),
        pads_to_limit=True,
        encoder_parameters=(596_049_920 + 134_663_680,),  # with the text conditioner, which is in memory at the same time
        width=1024,
    ),
    # diffusers has no decoder for taew2_1, whose latents have five dimensions.
    latents=LatentSpec(
        alignment_px=16,
        channels=16,
        scale_factor_px=8,
        previews_in_full=True,
        autoencoder=CAUSAL_AUTOENCODER,
        autoencoder_classes=("AutoencoderKLQwenImage",),
    ),
    activation_share=1.65,  # three norms that are scaled, shifted and gated; norms of queries and keys; rotated places
    short_shares=(1.09, 1.02),
    repeated_blocks=("CosmosTransformerBlock",),
    routing=RoutingSpec(along=MappingProxyType({"image_rotary_emb": 0})),
    distillation=DistillationSpec(base=BASE),
    sampling=SamplingSpec(samplers=("euler", "unipc", "dpm++"), options=frozenset({"validation_guidance_rescale"})),
    adapters=AdapterSpec(
        module_classes=("Attention", "FeedForward", "CosmosTransformerBlock", "Linear"),
        lycoris_start=lokr_start(16, {"Attention": 16, "FeedForward": 8}),
        lora_targets=MappingProxyType({"attention": tuple(f"attn{number}.{layer}" for number in (1, 2) for layer in LAYERS)}),
        default_lora_target="attention",
        base_precisions=QUANTISED,
    ),
    known_as=MappingProxyType({"anima": "base-v1.0"}),
    defaults=MappingProxyType(
        {"resolution": 1024, "flow_schedule_shift": 3.0, "validation_guidance": 4.0, "validation_num_inference_steps": 30}
    ),
    parameters=MappingProxyType(dict.fromkeys(FLAVOURS, 1_956_405_248)),
    licenses=MappingProxyType(dict.fromkeys(FLAVOURS, TERMS)),
    architectures=MappingProxyType(dict.fromkeys(FLAVOURS, "anima")),
)
