"""FLUX.3: a rectified-flow transformer that reads long prompts through Qwen3-VL (Black Forest Labs, 2026)."""

from __future__ import annotations

from types import MappingProxyType

from trainer_engine.config.adapters.other_names import OriginalNames
from trainer_engine.config.attention import BOOLEAN
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
from trainer_engine.config.one_file.layout import FileLayout
from trainer_engine.config.precisions import QUANTISED
from trainer_engine.config.text_states import TextStates

BASE, DISTILLED = "klein", "klein-distilled"
FLAVOURS = MappingProxyType({BASE: "black-forest-labs/flux-3-image-klein-base", DISTILLED: "black-forest-labs/flux-3-image-klein"})
SHIFT = 6.93
"""Shift of the noise schedule at every size, as the pipeline of diffusers has it."""
ATTENTION = ("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0")
BLOCKS = MappingProxyType(
    {
        r"mode_blocks\.(image|image_cond)\.(\d+)\.": r"content_mode_blocks.\1.\2.",
        r"txt_mode_blocks\.(\d+)\.": r"txt_mode_blocks.\1.",
        r"single_transformer_blocks\.(\d+)\.": r"single_blocks.\1.",
    }
)
LAYERS = MappingProxyType(
    {
        **{rf"attn\.to_{part}": f"{part}_proj" for part in "qkv"},
        r"attn\.to_out\.0": "attn_out",
        r"ff\.linear_in": "mlp_in",
        r"ff\.linear_out": "mlp_out",
    }
)
ORIGINAL_NAMES = OriginalNames(
    mark="txt_mode_blocks.0.attn.to_q",
    names=tuple((block + layer, theirs + name) for block, theirs in BLOCKS.items() for layer, name in LAYERS.items()),
)
"""The layers of the blocks, by their names in the publisher's code, which diffusers reads in adapter files with ComfyUI's prefix."""


def _license(flavour: str) -> MappingProxyType[str, str]:
    link = f"https://huggingface.co/{FLAVOURS[flavour]}/blob/main/LICENSE.md"
    return MappingProxyType({"license": "other", "license_name": "flux-kommunity-license", "license_link": link})


TEXT_LAYERS = (4, 8, 12, 16, 20, 24, 28, 32)
"""The states of the text encoder that the network takes, side by side."""

SPEC = FamilySpec(
    name="flux3",
    title="FLUX.3",
    description="Rectified-flow transformer of 5.5 billion parameters with Qwen3-VL 4B as its text encoder; it edits with any number of "
    "reference images. Its schedule is shifted by 6.93 at every size.",
    flavours=FLAVOURS,
    default_flavour=BASE,
    model_types=("full", "lora"),
    objective="flow_matching",
    prediction_types=("flow_matching",),
    components=MappingProxyType(
        {
            "transformer": Component("transformer", "transformer.", Role.TRAINED, original_names=ORIGINAL_NAMES, comfyui_takes_alpha=False),
            **frozen_components("vae", "text_encoder"),
        }
    ),
    schedule=MappingProxyType({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": SHIFT}),
    network_classes=("Flux3Transformer2DModel",),
    prompts=PromptSpec(
        states=(TextStates(width="joint_attention_dim", layers=TEXT_LAYERS, side_by_side=True),),
        token_limit=8192,
        text_encoders=("Qwen3-VL 4B",),
        joins_sequence=True,
        mask=BOOLEAN,
        encoder_parameters=(3_719_675_648,),
        encoder_layers=33,
        width=20_480,
    ),
    latents=LatentSpec(
        alignment_px=16,
        channels=128,
        scale_factor_px=16,
        previews_in_full=True,
        autoencoder_classes=("AutoencoderKLFlux2",),
    ),
    file_layouts=(FileLayout(title="FLUX.3", mark="content_mode_blocks.image."),),
    repeated_blocks=("Flux3ModeTransformerBlock", "Flux3SingleTransformerBlock"),
    distillation=DistillationSpec(
        base=FLAVOURS[BASE],
        flavours=frozenset({DISTILLED}),
        repositories=frozenset({FLAVOURS[DISTILLED]}),
        networks=(MappingProxyType({"flow_map": True}),),
    ),
    sampling=SamplingSpec(samplers=("euler", "unipc", "dpm++")),
    adapters=AdapterSpec(
        module_classes=("Flux3Attention", "Flux3FeedForward", "Flux3ModeTransformerBlock", "Flux3SingleTransformerBlock", "Linear"),
        class_aliases=MappingProxyType({"Attention": ("Flux3Attention",), "FeedForward": ("Flux3FeedForward",)}),
        lycoris_start=lokr_start(16, {"Flux3Attention": 16, "Flux3FeedForward": 8}),
        lora_targets=MappingProxyType({"attention": ATTENTION}),
        default_lora_target="attention",
        base_precisions=QUANTISED,
    ),
    aliases=("flux.3",),
    known_as=MappingProxyType({"flux3": BASE, "flux3_klein": BASE, "flux_3_image_klein_base": BASE}),
    activation_share=1.4,
    short_shares=(1.18, 1.07),
    defaults=MappingProxyType(
        {"resolution": 1024, "flow_schedule_shift": SHIFT, "validation_guidance": 3.5, "validation_num_inference_steps": 50}
    ),
    flavour_defaults=MappingProxyType(
        {DISTILLED: MappingProxyType({"validation_guidance": 1.0, "validation_num_inference_steps": 16})},
    ),
    parameters=MappingProxyType({BASE: 5_538_458_368, DISTILLED: 5_548_681_984}),
    licenses=MappingProxyType({flavour: _license(flavour) for flavour in FLAVOURS}),
    takes_references=frozenset(FLAVOURS),
    most_references=10,
)
