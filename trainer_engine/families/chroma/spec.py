"""Chroma: Flux.1 schnell with smaller layers for the timestep, trained to need many steps again (Lodestone Rock, 2025)."""

from __future__ import annotations

from types import MappingProxyType

from trainer_engine.config.distillation import FEW_STEP_WORDS, DistillationSpec
from trainer_engine.config.family_parts import Component, LatentSpec, PromptSpec, Role, SamplingSpec, Scaling, frozen_components
from trainer_engine.config.family_spec import FamilySpec
from trainer_engine.config.one_file.layout import FileLayout
from trainer_engine.config.routing import RoutingSpec
from trainer_engine.config.text_states import TextStates
from trainer_engine.families.common.flux_layers import ORIGINAL_NAMES, flux_adapters

BASE = "lodestones/Chroma1-Base"
FLAVOURS = MappingProxyType({"base": BASE, "hd": "lodestones/Chroma1-HD", "flash": "lodestones/Chroma1-Flash"})
DENSITIES = tuple(round(2 - 7.7 * (number / 10 - 0.5) ** 2, 3) for number in range(11))
"""Of the timesteps that the published weights were trained on: 2 - 7.7 (sigma - 1/2)^2, the density of the publisher's own trainer
(lodestone-rock/flow). It reaches the ends of the schedule, where a logit-normal one has nearly nothing."""

SPEC = FamilySpec(
    name="chroma",
    title="Chroma",
    description="Rectified-flow transformer of 9 billion parameters, made from Flux.1 schnell, with a T5 XXL text encoder.",
    flavours=FLAVOURS,
    default_flavour="base",
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
    file_layouts=(FileLayout(title="Chroma", mark="distilled_guidance_layer."),),
    network_classes=("ChromaTransformer2DModel",),
    prompts=PromptSpec(
        states=(TextStates(width="joint_attention_dim", size="d_model", depth="num_layers", kind="t5"),),
        token_limit=512,
        text_encoders=("T5 XXL v1.1",),
        t5_folder="text_encoder",
        encoder_parameters=(4_762_310_656,),
        joins_sequence=True,
        mask="additive",
        masks_pairs=True,
        stores_padding=True,
    ),
    repeated_blocks=("ChromaTransformerBlock", "ChromaSingleTransformerBlock"),
    routing=RoutingSpec(
        blocks=("transformer_blocks", "single_transformer_blocks"),
        output=1,
        joined=frozenset({"single_transformer_blocks"}),
        along=MappingProxyType({"image_rotary_emb": 0, "attention_mask": -1}),
    ),
    distillation=DistillationSpec(base=BASE, flavours=frozenset({"flash"}), words=FEW_STEP_WORDS | {"flash"}),
    latents=LatentSpec(
        alignment_px=64,
        channels=16,
        scale_factor_px=8,
        preview_decoder="madebyollin/taef1",
        autoencoder_classes=("AutoencoderKL",),
        scaling=Scaling(0.3611, 0.1159),
    ),
    sampling=SamplingSpec(
        samplers=("euler", "unipc", "dpm++"),
        options=frozenset({"validation_guidance_real", "validation_no_cfg_until_timestep"}),
    ),
    adapters=flux_adapters(("ChromaTransformerBlock", "ChromaSingleTransformerBlock")),
    aliases=("chroma1",),
    known_as=MappingProxyType({"chroma": "base", "chroma1": "base", "chroma1_base": "base", "chroma1_hd": "hd", "chroma1_flash": "flash"}),
    activation_share=1.43,
    short_shares=(0.93, 0.95),
    defaults=MappingProxyType(
        {
            "resolution": 512,
            "flow_schedule_shift": 0.0,
            "flow_cubic_schedule_weights": f"[{', '.join(f'{density:g}' for density in DENSITIES)}]",
            "validation_guidance": 3.0,
            "validation_num_inference_steps": 28,
        }
    ),
    flavour_defaults=MappingProxyType(
        {
            "hd": MappingProxyType({"resolution": 1024}),
            "flash": MappingProxyType({"validation_guidance": 1.0, "validation_num_inference_steps": 8}),
        }
    ),
    parameters=MappingProxyType(dict.fromkeys(FLAVOURS, 8_899_983_424)),
    licenses=MappingProxyType(dict.fromkeys(FLAVOURS, MappingProxyType({"license": "apache-2.0"}))),
    architectures=MappingProxyType(dict.fromkeys(FLAVOURS, "chroma")),
)
