"""Qwen-Image 2.1: a transformer with one stream, in which Qwen3-VL's tokens make room for those of images (Qwen team, 2026)."""

from __future__ import annotations

from types import MappingProxyType

from trainer_engine.config.distillation import DistillationSpec
from trainer_engine.config.family_costs import AutoencoderFacts
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

BASE, TURBO = "Qwen/Qwen-Image-2.1", "Qwen/Qwen-Image-2.1-Turbo"
FLAVOURS = MappingProxyType({"v2.1": BASE, "v2.1-turbo": TURBO})
DISTILLED = frozenset({"v2.1-turbo"})
TURBO_SIGMAS = (1.0, 0.978453, 0.95418, 0.926626, 0.89508, 0.845148, 0.704534, 0.414568)
"""Noise levels that the distilled weights were trained for, as their ``model_index.json`` has them."""
LICENSE = MappingProxyType(
    {"license": "other", "license_name": "qwen-research", "license_link": f"https://huggingface.co/{BASE}/blob/main/LICENSE"}
)
ATTENTION = ("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0")

SPEC = FamilySpec(
    name="qwen_image_21",
    title="Qwen-Image 2.1",
    description="Flow-matching transformer of 7 billion parameters that generates and edits, with a Qwen3-VL 8B text encoder that looks at "
    "any number of reference images. v2.1 needs no guidance; v2.1-turbo is distilled to 8 steps as well.",
    flavours=FLAVOURS,
    default_flavour="v2.1",
    model_types=("full", "lora"),
    objective="flow_matching",
    prediction_types=("flow_matching",),
    components=MappingProxyType(
        {"transformer": Component("transformer", "transformer.", Role.TRAINED), **frozen_components("vae", "text_encoder")}
    ),
    file_layouts=(FileLayout(title="Qwen-Image 2.1", mark=".img_mlp.gate_"),),
    network_classes=("QwenImage21Transformer2DModel",),
    prompts=PromptSpec(
        states=(TextStates(width="context_in_dim"),),
        token_limit=1024,
        text_encoders=("Qwen3-VL 8B",),
        tokenizers=("processor",),
        joins_sequence=True,
        mask="boolean",
        encoder_parameters=(8_144_793_840,),
    ),
    latents=LatentSpec(
        alignment_px=32,
        channels=64,
        scale_factor_px=16,
        token_px=16,
        previews_in_full=True,
        autoencoder=AutoencoderFacts(parameters=337_740_404, width=96, encoding=10.1, decoding=32.0, tile_px=256),
        autoencoder_classes=("AutoencoderKLQwenImage21",),
    ),
    repeated_blocks=("QwenImage21TransformerBlock",),
    distillation=DistillationSpec(base=BASE, flavours=DISTILLED, pipelines=({"sample_sigmas": list},)),
    sampling=SamplingSpec(samplers=("euler", "unipc", "dpm++"), multiple_px=32),
    adapters=AdapterSpec(
        module_classes=("QwenImage21Attention", "QwenImage21SwiGLUFeedForward", "QwenImage21TransformerBlock", "Linear"),
        class_aliases=MappingProxyType({"Attention": ("QwenImage21Attention",), "FeedForward": ("QwenImage21SwiGLUFeedForward",)}),
        lycoris_start=lokr_start(16, {"QwenImage21Attention": 16, "QwenImage21SwiGLUFeedForward": 8}),
        lora_targets=MappingProxyType({"attention": ATTENTION}),
        default_lora_target="attention",
        base_precisions=QUANTISED,
    ),
    aliases=("qwen-image-2.1", "qwen_image_2_1", "qwenimage21", "qwen_image21"),
    known_as=MappingProxyType({"qwen_image_21": "v2.1", "qwen_image_2_1": "v2.1", "qwen_image_2_1_turbo": "v2.1-turbo"}),
    companion=BASE,
    activation_share=1.78,
    short_shares=(1.25, 1.1),
    passes_alone=True,
    poor_precisions=MappingProxyType({"fp16": "activations are clipped"}),
    defaults=MappingProxyType(
        {
            "resolution": 1024,
            "flow_schedule_shift": 0.0,
            "flow_schedule_auto_shift": True,
            "validation_guidance": 1.0,
            "validation_num_inference_steps": 40,
        }
    ),
    flavour_defaults=MappingProxyType({"v2.1-turbo": MappingProxyType({"validation_num_inference_steps": len(TURBO_SIGMAS)})}),
    parameters=MappingProxyType(dict.fromkeys(FLAVOURS, 7_115_124_736)),
    licenses=MappingProxyType(dict.fromkeys(FLAVOURS, LICENSE)),
    architectures=MappingProxyType(dict.fromkeys(FLAVOURS, "qwen-image-2.1")),
    takes_references=frozenset(FLAVOURS),
)
