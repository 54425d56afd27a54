"""Stable Diffusion 3.5: a transformer with a stream for the prompt and one for the image, and three text encoders (Esser et al., 2024)."""

from __future__ import annotations

from types import MappingProxyType

from trainer_engine.config.controlnet import CUSTOM, ControlNetSetting, ControlNetSpec
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
from trainer_engine.config.positions import PositionSpec
from trainer_engine.config.precisions import ANY_FAMILY
from trainer_engine.config.text_states import TextStates
from trainer_engine.contract.errors import Problem

FLAVOURS = MappingProxyType({"medium": "stabilityai/stable-diffusion-3.5-medium", "large": "stabilityai/stable-diffusion-3.5-large"})
BLOCKS = MappingProxyType({"medium": 24, "large": 38})
"""Flavour -> blocks of its network."""
CLIP_TOKENS, CLIP_WIDTHS = 77, (768, 1280)
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
CONTROL_LAYERS = 12
"""Blocks of a new ControlNet, as diffusers makes it."""


def layers_problem(layers: int, blocks: int) -> Problem | None:
    """Refuses more blocks of a ControlNet than half of the transformer's ``blocks``, or None.

    Each output is added behind two blocks or more, and behind the last block nothing is: with more layers some would not be read.
    """
    if layers <= blocks // 2:
        return None
    message = f"The outputs of a ControlNet reach at most every second of the {blocks} blocks of the transformer."
    return Problem.error(f"{CUSTOM}.num_layers", "too_many", message, got=layers, expected=f"at most {blocks // 2}")


SPEC = FamilySpec(
    name="sd3",
    title="Stable Diffusion 3.5",
    description="Flow-matching transformer of 2.2 or 8 billion parameters with CLIP L, OpenCLIP bigG and T5 XXL text encoders.",
    flavours=FLAVOURS,
    default_flavour="medium",
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
            ),
            **frozen_components("vae", "text_encoder", "text_encoder_2", "text_encoder_3"),
        }
    ),
    network_classes=("SD3Transformer2DModel",),
    prompts=PromptSpec(
        states=(
            TextStates(width="joint_attention_dim", size="d_model", depth="num_layers", kind="t5", folders=("text_encoder_3",)),
            TextStates(width="pooled_projection_dim", size="projection_dim", folders=("text_encoder", "text_encoder_2")),
        ),
        token_limit=154,
        text_encoders=("CLIP L/14", "OpenCLIP bigG/14", "T5 XXL v1.1"),
        text_encoder_folders=("text_encoder", "text_encoder_2", "text_encoder_3"),
        clip_folders=("text_encoder", "text_encoder_2"),
        reads_penultimate=True,
        t5_folder="text_encoder_3",
        optional_folders=("text_encoder_3", "tokenizer_3"),
        joins_sequence=True,
        added_tokens=CLIP_TOKENS,
        encoder_parameters=(123_650_304, 694_659_840, 4_762_310_656),
        pooled=sum(CLIP_WIDTHS) * (CLIP_TOKENS + 1),
        stores_padding=True,
    ),
    latents=LatentSpec(
        alignment_px=64,
        channels=16,
        scale_factor_px=8,
        preview_decoder="madebyollin/taesd3",
        autoencoder_classes=("AutoencoderKL",),
        scaling=Scaling(1.5305, 0.0609),
    ),
    positions=PositionSpec(key="pos_embed_max_size", published=384, flavours=MappingProxyType({"large": 192}), counts_an_edge=True),
    repeated_blocks=("JointTransformerBlock",),
    distillation=DistillationSpec(base=FLAVOURS["large"]),
    sampling=SamplingSpec(samplers=("euler", "unipc", "dpm++"), options=frozenset({"validation_guidance_skip_layers"})),
    adapters=AdapterSpec(
        module_classes=("Attention", "FeedForward", "JointTransformerBlock", "Linear"),
        lycoris_start=lokr_start(16, {"Attention": 16, "FeedForward": 8}),
        lora_targets=MappingProxyType({"attention": ATTENTION}),
        default_lora_target="attention",
        base_precisions=("int8-quanto", "int4-quanto", *ANY_FAMILY),
    ),
    aliases=("stable-diffusion-3", "sd3.5"),
    known_as=MappingProxyType(
        {
            "sd3": "medium",
            "sd35": "medium",
            "sd3_5_medium": "medium",
            "sd35_medium": "medium",
            "sd3_5_large": "large",
            "sd35_large": "large",
            "stable_diffusion_35": "medium",
        }
    ),
    activation_share=1.3,
    short_shares=(1.3, 1.0),
    defaults=MappingProxyType({"resolution": 1024, "validation_guidance": 4.5, "validation_num_inference_steps": 40}),
    flavour_defaults=MappingProxyType({"large": MappingProxyType({"validation_guidance": 3.5, "validation_num_inference_steps": 28})}),
    parameters=MappingProxyType({"medium": 2_243_171_520, "large": 8_056_627_520}),
    controlnet=ControlNetSpec(
        class_name="SD3ControlNetModel",
        pipeline="StableDiffusion3ControlNetPipeline",
        parameters=MappingProxyType({"medium": 1_261_169_664, "large": 2_654_723_200}),
        new_layers=r"controlnet_|pos_embed_input\.",
        sees_latents=True,
        matching=("in_channels", "joint_attention_dim", "pooled_projection_dim", "num_attention_heads", "attention_head_dim"),
        fixed=MappingProxyType({"extra_conditioning_channels": 0, "use_pos_embed": True}),
        settings=MappingProxyType({"num_layers": ControlNetSetting(least=1, most=max(BLOCKS.values()) // 2)}),
        unused=frozenset({"validation_guidance_skip_layers"}),
    ),
    architectures=MappingProxyType({flavour: f"stable-diffusion-3.5-{flavour}" for flavour in FLAVOURS}),
    licenses=MappingProxyType(
        {
            flavour: MappingProxyType(
                {
                    "license": "other",
                    "license_name": "stabilityai-ai-community",
                    "license_link": f"https://huggingface.co/{repository}/blob/main/LICENSE.md",
                }
            )
            for flavour, repository in FLAVOURS.items()
        }
    ),
)
