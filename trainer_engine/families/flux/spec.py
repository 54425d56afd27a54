"""Flux.1: a rectified-flow transformer with CLIP and T5 conditioning (Black Forest Labs, 2024)."""

from __future__ import annotations

from types import MappingProxyType

from trainer_engine.config.control import ControlSpec
from trainer_engine.config.controlnet import ControlNetSetting, ControlNetSpec
from trainer_engine.config.distillation import DistillationSpec
from trainer_engine.config.family_parts import Component, LatentSpec, PromptSpec, Role, SamplingSpec, Scaling, frozen_components
from trainer_engine.config.family_spec import FamilySpec
from trainer_engine.config.one_file.layout import FileLayout
from trainer_engine.config.routing import RoutingSpec
from trainer_engine.config.text_states import TextStates
from trainer_engine.config.token_splitting import SplittingSpec
from trainer_engine.families.common.flux_layers import EVERYTHING, LORA_TARGETS, ORIGINAL_NAMES, flux_adapters
from trainer_engine.families.flux.options import WITHOUT_GUIDANCE

MODULATION = ("norm1.linear", "norm1_context.linear", "norm.linear")
CONTROL_LAYERS = (
    "controlnet_x_embedder",
    *(f"controlnet_blocks.{number}" for number in range(19)),
    *(f"controlnet_single_blocks.{number}" for number in range(38)),
)
"""The layers that only a ControlNet has."""

SCHNELL_ASSISTANT = "ostris/FLUX.1-schnell-training-adapter"
NON_COMMERCIAL = MappingProxyType(
    {
        "license": "other",
        "license_name": "flux-1-dev-non-commercial-license",
        "license_link": "https://huggingface.co/black-forest-labs/FLUX.1-dev/blob/main/LICENSE.md",
    }
)

SPEC = FamilySpec(
    name="flux",
    title="Flux.1",
    description="Rectified-flow transformer of 12 billion parameters with CLIP L and T5 XXL text encoders; Kontext edits reference images.",
    flavours=MappingProxyType(
        {
            "dev": "black-forest-labs/FLUX.1-dev",
            "krea": "black-forest-labs/FLUX.1-Krea-dev",
            "schnell": "black-forest-labs/FLUX.1-schnell",
            "kontext": "black-forest-labs/FLUX.1-Kontext-dev",
            "fluxbooru": "terminusresearch/fluxbooru-v0.3",
            "libreflux": "jimmycarter/LibreFlux-SimpleTuner",
        }
    ),
    default_flavour="krea",
    model_types=("full", "lora"),
    objective="flow_matching",
    prediction_types=("flow_matching",),
    activation_share=1.43,  # norms of queries and keys, rotary embedding, modulation of two streams
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
            **frozen_components("vae", "text_encoder", "text_encoder_2"),
        }
    ),
    file_layouts=(FileLayout(title="Flux.1", mark="double_blocks.0.img_attn."),),
    network_classes=("FluxTransformer2DModel",),
    prompts=PromptSpec(
        states=(
            TextStates(width="joint_attention_dim", size="d_model", depth="num_layers", kind="t5", folders=("text_encoder_2",)),
            TextStates(width="pooled_projection_dim"),
        ),
        token_limit=512,
        flavour_token_limits=MappingProxyType({"schnell": 256}),  # the distilled flavour was trained with shorter prompts
        text_encoders=("CLIP L/14", "T5 XXL v1.1"),
        text_encoder_folders=("text_encoder", "text_encoder_2"),
        clip_folders=("text_encoder",),
        t5_folder="text_encoder_2",
        encoder_parameters=(123_060_480, 4_762_310_656),
        joins_sequence=True,
        mask="boolean",
        mask_option="flux_attention_masked_training",
        pooled=768,
        stores_padding=True,
        unpadded_option="flux_attention_masked_training",
    ),
    repeated_blocks=("FluxTransformerBlock", "FluxSingleTransformerBlock"),
    routing=RoutingSpec(
        blocks=("transformer_blocks", "single_transformer_blocks"),
        output=1,
        along=MappingProxyType({"image_rotary_emb": 0, "joint_attention_kwargs": -1}),
    ),
    splitting=SplittingSpec(splits_prompt=True),
    distillation=DistillationSpec(
        base="black-forest-labs/FLUX.1-dev",
        flavours=frozenset({"schnell"}),
        restored=frozenset({"libreflux"}),
        networks=(MappingProxyType({"guidance_embeds": False}),),  # schnell's, and what was trained from it
        assistant=SCHNELL_ASSISTANT,
    ),
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
    adapters=flux_adapters(
        ("FluxTransformerBlock", "FluxSingleTransformerBlock"),
        {
            "controlnet": (*LORA_TARGETS["all"], *CONTROL_LAYERS),
            "all+ffs+embedder+controlnet": (*LORA_TARGETS["all+ffs+embedder"], *CONTROL_LAYERS),
            "ai-toolkit": (*EVERYTHING, *MODULATION),
        },
    ),
    aliases=("flux.1", "flux1"),
    known_as=MappingProxyType(
        {
            "flux": "dev",
            "flux1": "dev",
            "flux_dev": "dev",
            "flux1_dev": "dev",
            "flux_dev_1": "dev",
            "flux_schnell": "schnell",
            "flux1_schnell": "schnell",
            "flux_kontext": "kontext",
            "flux1_kontext_dev": "kontext",
            "flux1_dev_kontext": "kontext",
            "flux_krea": "krea",
            "flux1_krea_dev": "krea",
        }
    ),
    defaults=MappingProxyType({"validation_guidance": 3.5, "validation_num_inference_steps": 28}),
    flavour_defaults=MappingProxyType(
        {
            "schnell": MappingProxyType(
                {"validation_guidance": 1.0, "validation_num_inference_steps": 4, "assistant_lora_path": SCHNELL_ASSISTANT}
            ),
            "kontext": MappingProxyType({"validation_guidance": 2.5}),
            "fluxbooru": MappingProxyType({"flux_guidance_value": 3.5, "validation_guidance_real": 6.0}),
            "libreflux": MappingProxyType({"flux_attention_masked_training": True, "validation_guidance_real": 6.0}),
        }
    ),
    parameters=MappingProxyType(
        {
            **dict.fromkeys(("dev", "krea", "kontext", "fluxbooru"), 11_901_408_320),
            **dict.fromkeys(WITHOUT_GUIDANCE, 11_891_178_560),
        }
    ),
    controlnet=ControlNetSpec(
        class_name="FluxControlNetModel",
        pipeline="FluxControlNetPipeline",
        parameters=MappingProxyType(
            {**dict.fromkeys(("dev", "krea", "fluxbooru"), 2_952_654_336), **dict.fromkeys(WITHOUT_GUIDANCE, 2_942_424_576)}
        ),
        sees_latents=True,
        matching=("in_channels", "joint_attention_dim", "pooled_projection_dim", "num_attention_heads", "attention_head_dim"),
        settings=MappingProxyType(
            {"num_layers": ControlNetSetting(least=1, most=19), "num_single_layers": ControlNetSetting(least=1, most=38)}
        ),
        unused=frozenset(),
    ),
    control=ControlSpec(
        input_layer="x_embedder",
        channels=64,
        parameters=MappingProxyType(
            {**dict.fromkeys(("dev", "krea", "fluxbooru"), 11_901_604_928), **dict.fromkeys(WITHOUT_GUIDANCE, 11_891_375_168)}
        ),
        pipeline="FluxControlPipeline",
        in_comfyui=True,
        unused=frozenset({"validation_guidance_real", "validation_no_cfg_until_timestep"}),
    ),
    architectures=MappingProxyType(
        {
            **dict.fromkeys(("dev", "krea", "fluxbooru"), "flux-1-dev"),
            **dict.fromkeys(WITHOUT_GUIDANCE, "flux-1-schnell"),
            "kontext": "flux-1-dev-kontext",
        },
    ),
    licenses=MappingProxyType(
        {
            **dict.fromkeys(("dev", "krea", "kontext", "fluxbooru"), NON_COMMERCIAL),
            **dict.fromkeys(WITHOUT_GUIDANCE, MappingProxyType({"license": "apache-2.0"})),
        }
    ),
    takes_references=frozenset({"kontext"}),
    needs_references=frozenset({"kontext"}),
)
