"""Wan 2.1: a video transformer that also trains on images, each a clip of one frame, or animates an image (Wan Team, 2025)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

from trainer_engine.config.adapters.other_names import OriginalNames
from trainer_engine.config.distillation import FEW_STEP_WORDS, DistillationSpec
from trainer_engine.config.family_costs import CAUSAL_AUTOENCODER
from trainer_engine.config.family_parts import (
    AdapterSpec,
    ClipSpec,
    Component,
    FirstFrameSpec,
    LatentSpec,
    PromptSpec,
    Role,
    SamplingSpec,
    frozen_components,
    lokr_start,
)
from trainer_engine.config.family_spec import FamilySpec
from trainer_engine.config.one_file.layout import FileLayout
from trainer_engine.config.precisions import ANY_FAMILY
from trainer_engine.config.routing import RoutingSpec
from trainer_engine.config.text_states import TextStates
from trainer_engine.config.token_splitting import SplittingSpec

FLAVOURS = MappingProxyType(
    {
        "t2v-480p-1.3b-2.1": "Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
        "t2v-480p-14b-2.1": "Wan-AI/Wan2.1-T2V-14B-Diffusers",
        "i2v-14b-2.1": "Wan-AI/Wan2.1-I2V-14B-480P-Diffusers",
        "i2v-14b-2.1-720p": "Wan-AI/Wan2.1-I2V-14B-720P-Diffusers",
    }
)
ANIMATING = frozenset({"i2v-14b-2.1", "i2v-14b-2.1-720p"})
"""Flavours that are given the first frame of a clip."""
LONGEST = 81
"""Frames of the clips that the published weights were trained on."""
EMBEDDING = 257 * 1280
"""Numbers of the embedding of a frame: tokens of CLIP ViT-H/14 for 224 pixels, times their width."""
INPUT = "patch_embedding.weight"
"""The weight that reads latents, of the shape (width, channels, 1, 2, 2); its key in files of diffusers and in the original ones."""
SHIFTS = MappingProxyType({"480p": 3.0, "720p": 5.0})
"""Size in the name of a flavour -> shift of its published schedule."""
NAMES = (
    (r"(blocks\.\d+)\.attn1\.(?:to_)?(q|k|v|norm_[qk])", r"\1.self_attn.\2"),
    (r"(blocks\.\d+)\.attn1\.to_out\.0", r"\1.self_attn.o"),
    (r"(blocks\.\d+)\.attn2\.(?:to_)?(q|k|v|norm_[qk])", r"\1.cross_attn.\2"),
    (r"(blocks\.\d+)\.attn2\.to_out\.0", r"\1.cross_attn.o"),
    (r"(blocks\.\d+)\.attn2\.add_([kv])_proj", r"\1.cross_attn.\2_img"),
    (r"(blocks\.\d+)\.attn2\.norm_added_k", r"\1.cross_attn.norm_k_img"),
    (r"(blocks\.\d+)\.ffn\.net\.0\.proj", r"\1.ffn.0"),
    (r"(blocks\.\d+)\.ffn\.net\.2", r"\1.ffn.2"),
    (r"(blocks\.\d+)\.norm2", r"\1.norm3"),
    (r"condition_embedder\.(text|time)_embedder\.linear_1", r"\1_embedding.0"),
    (r"condition_embedder\.(text|time)_embedder\.linear_2", r"\1_embedding.2"),
    (r"condition_embedder\.time_proj", "time_projection.1"),
    (r"condition_embedder\.image_embedder\.norm1", "img_emb.proj.0"),
    (r"condition_embedder\.image_embedder\.ff\.net\.0\.proj", "img_emb.proj.1"),
    (r"condition_embedder\.image_embedder\.ff\.net\.2", "img_emb.proj.3"),
    (r"condition_embedder\.image_embedder\.norm2", "img_emb.proj.4"),
    ("patch_embedding", "patch_embedding"),
    ("proj_out", "head.head"),
)
"""Module in diffusers -> in the code of the publisher, whose names ComfyUI and most other trainers use."""
ORIGINAL_NAMES = OriginalNames(mark="condition_embedder.time_proj", names=NAMES)


def defaults_of(flavours: Iterable[str]) -> Mapping[str, Mapping[str, Any]]:
    """Flavour -> its option defaults: the shift and, for 720p, the size in its name; a clip from a first frame, rather than the frame."""
    found: dict[str, dict[str, Any]] = {flavour: dict(shifts) for flavour, shifts in shifts_of(flavours).items()}
    for flavour, values in found.items():
        values.update({"resolution": 720} if "720p" in flavour else {})
        values.update({"validation_num_video_frames": LONGEST} if flavour in ANIMATING else {})
    return MappingProxyType({flavour: MappingProxyType(values) for flavour, values in found.items()})


def shifts_of(flavours: Iterable[str]) -> Mapping[str, Mapping[str, float]]:
    """Flavour -> the default of ``flow_schedule_shift`` that its name implies; 480p if it names no size."""
    sizes = {flavour: next((size for size in SHIFTS if size in flavour), "480p") for flavour in flavours}
    return MappingProxyType({flavour: MappingProxyType({"flow_schedule_shift": SHIFTS[size]}) for flavour, size in sizes.items()})


SPEC = FamilySpec(
    name="wan",
    title="Wan",
    description="Video transformer of 1.3 or 14 billion parameters with a UMT5 XXL text encoder; images are clips of one frame. "
    "Its schedule is shifted by 3 at 480p; the one for 720p is flow_schedule_shift=5. The i2v flavours, of 16 billion parameters, are also "
    "given the first frame of each clip: its latents and what CLIP sees in it.",
    flavours=FLAVOURS,
    default_flavour="t2v-480p-1.3b-2.1",
    other_flavours=(
        *("i2v-14b-2.2-high", "i2v-14b-2.2-low", "animegen-t2v-high", "animegen-t2v-low"),
        *("flf2v-14b-2.1", "vace-1.3b-2.1", "vace-14b-2.1", "ti2v-5b-2.2"),
    ),
    model_types=("full", "lora"),
    objective="flow_matching",
    prediction_types=("flow_matching",),
    components=MappingProxyType(
        {
            "transformer": Component("transformer", "transformer.", Role.TRAINED, original_names=ORIGINAL_NAMES),
            **frozen_components("vae", "text_encoder"),
        }
    ),
    file_layouts=(
        FileLayout(title="Wan image-to-video", mark=INPUT, mark_width=36, mark_axis=1, flavours=ANIMATING),
        FileLayout(title="Wan text-to-video", mark=INPUT, mark_width=16, mark_axis=1),
    ),
    first_frame=FirstFrameSpec(flavours=ANIMATING, folders=("image_encoder", "image_processor"), numbers=EMBEDDING),
    network_classes=("WanTransformer3DModel",),
    prompts=PromptSpec(
        states=(TextStates(width="text_dim", size="d_model", depth="num_layers", kind="umt5"),),
        t5_folder="text_encoder",
        token_limit=512,
        text_encoders=("UMT5 XXL",),
        pads_to_limit=True,
        encoder_parameters=(5_680_910_336,),
    ),
    # diffusers has no decoder for taew2_1, whose latents have five dimensions.
    latents=LatentSpec(
        media=("image", "clip"),
        alignment_px=32,
        channels=16,
        scale_factor_px=8,
        previews_in_full=True,
        autoencoder=CAUSAL_AUTOENCODER,
        autoencoder_classes=("AutoencoderKLWan",),
    ),
    routing=RoutingSpec(blocks=("blocks",), along=MappingProxyType({"rotary_emb": 1}), cells=(1, 2, 2)),
    splitting=SplittingSpec(),
    distillation=DistillationSpec(
        base=FLAVOURS["t2v-480p-1.3b-2.1"], bases=FLAVOURS, words=FEW_STEP_WORDS | {"causvid", "fastwan", "fast"}
    ),
    repeated_blocks=("WanTransformerBlock",),
    sampling=SamplingSpec(
        samplers=("euler", "unipc", "dpm++"),
        options=frozenset({"validation_guidance_skip_layers"}),
        multiple_px=16,
        clips=ClipSpec(stride=4, trained_frames=LONGEST, frames_per_second=16.0),
    ),
    adapters=AdapterSpec(
        module_classes=("WanAttention", "FeedForward", "WanTransformerBlock", "Linear", "Conv3d"),
        class_aliases=MappingProxyType({"Attention": ("WanAttention",)}),
        lycoris_start=lokr_start(8, {"WanAttention": 8}),
        lora_targets=MappingProxyType(
            {
                "attention": ("to_q", "to_k", "to_v", "to_out.0"),
            }
        ),
        default_lora_target="attention",
        base_precisions=("int8-quanto", "int4-quanto", *ANY_FAMILY),
    ),
    aliases=("wan2.1",),
    activation_share=1.4,  # three norms in float32, and norms of queries and keys
    short_shares=(1.25, 1.12),
    known_as=MappingProxyType(
        {
            "wan21": "t2v-480p-1.3b-2.1",
            "wan21_1b": "t2v-480p-1.3b-2.1",
            "t2v_1_3b": "t2v-480p-1.3b-2.1",
            "wan2_1_t2v_1_3b": "t2v-480p-1.3b-2.1",
            "wan21_14b": "t2v-480p-14b-2.1",
            "t2v_14b": "t2v-480p-14b-2.1",
            "wan2_1_t2v_14b": "t2v-480p-14b-2.1",
            **dict.fromkeys(("i2v_14b", "wan2_1_i2v_14b", "wan21_i2v", "wan21_i2v_14b480p", "wan2_1_i2v_480p_14b"), "i2v-14b-2.1"),
            **dict.fromkeys(("wan21_i2v_14b", "wan2_1_i2v_720p_14b"), "i2v-14b-2.1-720p"),
        }
    ),
    licenses=MappingProxyType(dict.fromkeys(FLAVOURS, MappingProxyType({"license": "apache-2.0"}))),
    defaults=MappingProxyType({"resolution": 480, "validation_guidance": 5.0}),
    flavour_defaults=defaults_of(FLAVOURS),
    parameters=MappingProxyType(
        {"t2v-480p-1.3b-2.1": 1_418_996_800, "t2v-480p-14b-2.1": 14_288_491_584, **dict.fromkeys(sorted(ANIMATING), 16_394_878_784)}
    ),
)
