"""Lumina-Image 2.0: a transformer with one stream for the tokens of prompt and image; Gemma 2 reads the prompts (Qin et al., 2025)."""

from __future__ import annotations

from types import MappingProxyType

from trainer_engine.config.adapters.other_names import JointLayer, OriginalNames
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
from trainer_engine.config.text_states import TextStates

BASE = "Alpha-VLLM/Lumina-Image-2.0"
FLAVOURS = MappingProxyType({"2.0": BASE, "neta-lumina": "terminusresearch/neta-lumina-v1"})
ATTENTION = ("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0")
BLOCK = r"((?:layers|noise_refiner|context_refiner)\.\d+\.)"
ORIGINAL_NAMES = OriginalNames(
    mark="time_caption_embed.caption_embedder.1",
    names=(
        (BLOCK + r"attn\.to_out\.0", r"\1attention.out"),
        (BLOCK + r"feed_forward\.linear_([123])", r"\1feed_forward.w\2"),
        (BLOCK + r"norm1\.linear", r"\1adaLN_modulation.1"),
        ("x_embedder", "x_embedder"),
        (r"time_caption_embed\.caption_embedder\.1", "cap_embedder.1"),
        (r"time_caption_embed\.timestep_embedder\.linear_1", "t_embedder.mlp.0"),
        (r"time_caption_embed\.timestep_embedder\.linear_2", "t_embedder.mlp.2"),
        (r"norm_out\.linear_1", "final_layer.adaLN_modulation.1"),
        (r"norm_out\.linear_2", "final_layer.linear"),
    ),
    joint=(JointLayer(name=r"\1attention.qkv", stem=BLOCK + r"attn\.", parts=("to_q", "to_k", "to_v"), shares=(3, 1, 1)),),
)
"""Three heads of the queries share one of keys and values, so that these have a third of the rows."""

SPEC = FamilySpec(
    name="lumina2",
    title="Lumina-Image 2.0",
    description="Flow-matching transformer of 2.6 billion parameters with a Gemma 2 2B text encoder. Neta Lumina is the same network, "
    "trained on illustrations.",
    flavours=FLAVOURS,
    default_flavour="2.0",
    model_types=("full", "lora"),
    objective="flow_matching",
    prediction_types=("flow_matching",),
    components=MappingProxyType(
        {
            "transformer": Component(
                "transformer",
                "transformer.",
                Role.TRAINED,
                comfyui_prefix="diffusion_model.",
                original_names=ORIGINAL_NAMES,
            ),
            **frozen_components("vae", "text_encoder"),
        }
    ),
    network_classes=("Lumina2Transformer2DModel",),
    prompts=PromptSpec(
        states=(TextStates(width="cap_feat_dim", kind="gemma2"),),
        token_limit=256,
        text_encoders=("Gemma 2 2B",),
        joins_sequence=True,
        mask="boolean",
        encoder_parameters=(2_614_341_888,),
        width=2304,
    ),
    latents=LatentSpec(
        alignment_px=64,
        channels=16,
        scale_factor_px=8,
        preview_decoder="madebyollin/taef1",
        autoencoder_classes=("AutoencoderKL",),
        scaling=Scaling(0.3611, 0.1159),
    ),
    repeated_blocks=("Lumina2TransformerBlock",),
    distillation=DistillationSpec(base=BASE),
    sampling=SamplingSpec(samplers=("euler", "unipc", "dpm++")),
    adapters=AdapterSpec(
        module_classes=("Attention", "LuminaFeedForward", "Lumina2TransformerBlock", "Linear"),
        class_aliases=MappingProxyType({"FeedForward": ("LuminaFeedForward",)}),
        lycoris_start=lokr_start(16, {"Attention": 16, "LuminaFeedForward": 8}),
        lora_targets=MappingProxyType({"attention": ATTENTION}),
        default_lora_target="attention",
        base_precisions=QUANTISED,
    ),
    aliases=("lumina-2", "lumina-image-2"),
    known_as=MappingProxyType({"lumina": "2.0", "lumina2": "2.0", "lumina_image_2": "2.0", "neta_lumina": "neta-lumina"}),
    activation_share=1.86,  # norms before and after attention and feed-forward, of queries and keys; keys and values of all heads
    short_shares=(1.49, 1.84),
    defaults=MappingProxyType({"resolution": 1024, "validation_guidance": 4.0, "validation_num_inference_steps": 30}),
    parameters=MappingProxyType(dict.fromkeys(FLAVOURS, 2_609_769_152)),
    licenses=MappingProxyType(
        {
            "2.0": MappingProxyType({"license": "apache-2.0"}),
            "neta-lumina": MappingProxyType(
                {
                    "license": "other",
                    "license_name": "fair-ai-public-license-1.0-sd",
                    "license_link": "https://freedevproject.org/faipl-1.0-sd/",
                }
            ),
        }
    ),
    architectures=MappingProxyType(dict.fromkeys(FLAVOURS, "lumina-2")),
)
