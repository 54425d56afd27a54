"""Krea 2: a transformer with one stream for the tokens of prompt and image; Qwen3-VL reads the prompts (Krea, 2026)."""

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

RAW, TURBO = "krea/Krea-2-Raw", "krea/Krea-2-Turbo"
FLAVOURS = MappingProxyType({"raw": RAW, "turbo": TURBO})
USUAL_LAYERS = tuple(range(2, 36, 3))
"""The states of Qwen3-VL 4B that the published networks take, beginning with its input."""
TEXT_WIDTH = 2560
ATTENTION = ("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0")
BLOCKS = MappingProxyType({r"transformer_blocks\.(\d+)\.": r"blocks.\1.", r"text_fusion\.(\w+\.\d+)\.": r"txtfusion.\1."})
LAYERS = MappingProxyType(
    {
        r"attn\.to_([qkv])": r"attn.w\2",
        r"attn\.to_out\.0": "attn.wo",
        r"attn\.to_gate": "attn.gate",
        r"ff\.(\w+)": r"mlp.\2",
    }
)
AROUND = (
    (r"text_fusion\.projector", "txtfusion.projector"),
    ("img_in", "first"),
    (r"time_embed\.linear_1", "tmlp.0"),
    (r"time_embed\.linear_2", "tmlp.2"),
    ("time_mod_proj", "tproj.1"),
    (r"txt_in\.linear_1", "txtmlp.1"),
    (r"txt_in\.linear_2", "txtmlp.3"),
    (r"final_layer\.linear", "last.linear"),
)
ORIGINAL_NAMES = OriginalNames(
    mark="text_fusion.projector",
    names=(*((block + layer, theirs + name) for block, theirs in BLOCKS.items() for layer, name in LAYERS.items()), *AROUND),
)
LICENSE = MappingProxyType(
    {
        "license": "other",
        "license_name": "krea-2-community-license",
        "license_link": f"https://huggingface.co/{RAW}/blob/main/LICENSE.pdf",
    }
)

SPEC = FamilySpec(
    name="krea2",
    title="Krea 2",
    description="Flow-matching transformer of 13 billion parameters that reads twelve layers of a Qwen3-VL 4B text encoder. Raw is the "
    "flavour to train; adapters that are trained on it are used with Turbo, which is distilled.",
    flavours=FLAVOURS,
    default_flavour="raw",
    model_types=("full", "lora"),
    objective="flow_matching",
    prediction_types=("flow_matching",),
    components=MappingProxyType(
        {
            # diffusers refuses files with alphas behind this prefix.
            "transformer": Component(
                "transformer",
                "transformer.",
                Role.TRAINED,
                comfyui_prefix="transformer.",
                original_names=ORIGINAL_NAMES,
                comfyui_takes_original=False,
                comfyui_takes_alpha=False,
            ),
            **frozen_components("vae", "text_encoder"),
        }
    ),
    file_layouts=(FileLayout(title="Krea 2", mark="fusion.projector."),),
    network_classes=("Krea2Transformer2DModel",),
    prompts=PromptSpec(
        states=(
            TextStates(width="text_hidden_dim", layers=USUAL_LAYERS, layers_setting="text_encoder_select_layers", count="num_text_layers"),
        ),
        token_limit=512,
        text_encoders=("Qwen3-VL 4B",),
        joins_sequence=True,
        mask="boolean",
        encoder_parameters=(4_022_468_096,),
        width=len(USUAL_LAYERS) * TEXT_WIDTH,
        stacked_layers=len(USUAL_LAYERS),
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
    repeated_blocks=("Krea2TransformerBlock",),
    routing=RoutingSpec(joined=frozenset({"transformer_blocks"}), along=MappingProxyType({"image_rotary_emb": 0, "attention_mask": -1})),
    distillation=DistillationSpec(base=RAW, flavours=frozenset({"turbo"}), pipelines=({"is_distilled": True},)),
    sampling=SamplingSpec(samplers=("euler", "unipc", "dpm++")),
    adapters=AdapterSpec(
        module_classes=("Krea2Attention", "Krea2SwiGLU", "Krea2TransformerBlock", "Krea2TextFusionBlock", "Linear"),
        class_aliases=MappingProxyType({"Attention": ("Krea2Attention",), "FeedForward": ("Krea2SwiGLU",)}),
        lycoris_start=lokr_start(16, {"Krea2Attention": 16, "Krea2SwiGLU": 8}),
        lora_targets=MappingProxyType({"attention": ATTENTION}),
        default_lora_target="attention",
        base_precisions=QUANTISED,
    ),
    aliases=("krea-2",),
    known_as=MappingProxyType({"krea2": "raw", "krea_2": "raw", "krea_2_raw": "raw", "krea_2_turbo": "turbo"}),
    activation_share=1.65,  # norms and rotated queries, keys that are repeated for groups of heads, two gates
    short_shares=(1.09, 1.04),
    defaults=MappingProxyType(
        {
            "resolution": 1024,
            "flow_schedule_shift": 0.0,
            "flow_schedule_auto_shift": True,
            "validation_guidance": 4.5,
            "validation_num_inference_steps": 28,
        }
    ),
    flavour_defaults=MappingProxyType(
        {
            "turbo": MappingProxyType(
                {
                    "flow_schedule_shift": 3.158,  # exp(1.15), whatever the size
                    "flow_schedule_auto_shift": False,
                    "validation_guidance": 0.0,
                    "validation_num_inference_steps": 8,
                }
            )
        },
    ),
    parameters=MappingProxyType(dict.fromkeys(FLAVOURS, 12_820_073_036)),
    licenses=MappingProxyType(dict.fromkeys(FLAVOURS, LICENSE)),
    architectures=MappingProxyType(dict.fromkeys(FLAVOURS, "krea-2")),
)
