"""LongCat-Image: the blocks of Flux.1 in a smaller transformer; Qwen2.5-VL reads the prompts (Meituan, 2025)."""

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
from trainer_engine.config.routing import RoutingSpec
from trainer_engine.config.text_states import TextStates
from trainer_engine.families.common.flux_layers import IMAGE_ATTENTION, ORIGINAL_NAMES

FINAL, DEV, EDIT = "final", "dev", "edit"
FLAVOURS = MappingProxyType(
    {FINAL: "meituan-longcat/LongCat-Image", DEV: "meituan-longcat/LongCat-Image-Dev", EDIT: "meituan-longcat/LongCat-Image-Edit"}
)
EDITS = frozenset({EDIT})
PROCESSOR = "text_processor"
"""Subfolder with what prepares images and chats for the text encoder."""

SPEC = FamilySpec(
    name="longcat_image",
    title="LongCat-Image",
    description="Rectified-flow transformer of 6 billion parameters with a Qwen2.5-VL 7B text encoder; it writes English and Chinese. "
    "dev has the weights from the middle of the training, to be trained further. edit looks at a reference, and so does its text encoder.",
    flavours=FLAVOURS,
    default_flavour=FINAL,
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
                original_names=ORIGINAL_NAMES,
                comfyui_takes_original=False,
            ),
            **frozen_components("vae", "text_encoder"),
        }
    ),
    network_classes=("LongCatImageTransformer2DModel",),
    prompts=PromptSpec(
        states=(TextStates(width="joint_attention_dim", kind="qwen2_5_vl"),),
        token_limit=512,
        text_encoders=("Qwen2.5-VL 7B",),
        joins_sequence=True,
        encoder_parameters=(7_070_619_136,),
        width=3584,
        stores_padding=True,
    ),
    latents=LatentSpec(
        alignment_px=16,
        channels=16,
        scale_factor_px=8,
        preview_decoder="madebyollin/taef1",
        autoencoder_classes=("AutoencoderKL",),
        scaling=Scaling(0.3611, 0.1159),
    ),
    repeated_blocks=("LongCatImageTransformerBlock", "LongCatImageSingleTransformerBlock"),
    routing=RoutingSpec(
        blocks=("transformer_blocks", "single_transformer_blocks"), output=1, along=MappingProxyType({"image_rotary_emb": 0})
    ),
    distillation=DistillationSpec(base=FLAVOURS[FINAL], bases=MappingProxyType({EDIT: FLAVOURS[EDIT]})),
    sampling=SamplingSpec(samplers=("euler", "unipc", "dpm++")),
    adapters=AdapterSpec(
        module_classes=(
            "LongCatImageAttention",
            "FeedForward",
            "LongCatImageTransformerBlock",
            "LongCatImageSingleTransformerBlock",
            "Linear",
        ),
        class_aliases=MappingProxyType({"Attention": ("LongCatImageAttention",)}),
        lycoris_start=lokr_start(16, {"LongCatImageAttention": 16, "FeedForward": 8}),
        lora_targets=MappingProxyType({"attention": IMAGE_ATTENTION}),
        default_lora_target="attention",
        slider_targets=IMAGE_ATTENTION,
        base_precisions=QUANTISED,
    ),
    known_as=MappingProxyType({"longcat_image": FINAL, "longcat_image_dev": DEV, "longcat_image_edit": EDIT}),
    activation_share=1.39,  # norms of queries and keys, rotary embedding, modulation of two streams
    short_shares=(1.0, 1.28),
    defaults=MappingProxyType({"resolution": 1024, "validation_guidance": 4.0, "validation_num_inference_steps": 50}),
    flavour_defaults=MappingProxyType({EDIT: MappingProxyType({"validation_guidance": 4.5})}),
    parameters=MappingProxyType(dict.fromkeys(FLAVOURS, 6_270_668_864)),
    licenses=MappingProxyType(dict.fromkeys(FLAVOURS, MappingProxyType({"license": "apache-2.0"}))),
    architectures=MappingProxyType({FINAL: "longcat-image", DEV: "longcat-image", EDIT: "longcat-image-edit"}),
    takes_references=EDITS,
    needs_references=EDITS,
    most_references=1,
    reference_folders=(PROCESSOR,),
)
