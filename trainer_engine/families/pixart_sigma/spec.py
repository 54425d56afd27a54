"""PixArt Sigma: a diffusion transformer with T5 conditioning (Chen et al., 2024)."""

from __future__ import annotations

from types import MappingProxyType

from trainer_engine.config.control import ControlSpec
from trainer_engine.config.controlnet import ControlNetSetting, ControlNetSpec
from trainer_engine.config.distillation import DistillationSpec
from trainer_engine.config.family_parts import (
    AdapterSpec,
    Component,
    LatentSpec,
    PromptSpec,
    Role,
    SamplingSpec,
    Scaling,
    StagesSpec,
    frozen_components,
)
from trainer_engine.config.family_spec import FamilySpec
from trainer_engine.config.precisions import ANY_FAMILY
from trainer_engine.config.routing import RoutingSpec
from trainer_engine.config.text_states import TextStates

FLAVOURS = MappingProxyType(
    {
        "900M-1024-v0.6": "terminusresearch/pixart-900m-1024-ft-v0.6",
        "900M-1024-v0.7-stage1": "terminusresearch/pixart-900m-1024-ft-v0.7-stage1",
        "900M-1024-v0.7-stage2": "terminusresearch/pixart-900m-1024-ft-v0.7-stage2",
        "600M-512": "PixArt-alpha/PixArt-Sigma-XL-2-512-MS",
        "600M-1024": "PixArt-alpha/PixArt-Sigma-XL-2-1024-MS",
        "600M-2048": "PixArt-alpha/PixArt-Sigma-XL-2-2K-MS",
    }
)

PARAMETERS = MappingProxyType(
    {
        "900M-1024-v0.6": 908_433_824,
        "900M-1024-v0.7-stage1": 908_433_824,
        "900M-1024-v0.7-stage2": 908_433_824,
        "600M-512": 610_856_096,
        "600M-1024": 610_856_096,
        "600M-2048": 610_856_096,
    }
)
CONTROL = ControlSpec(
    input_layer="pos_embed.proj",
    channels=4,
    parameters=MappingProxyType({flavour: number + 18_432 for flavour, number in PARAMETERS.items()}),
    pipeline="PixArtSigmaControlPipeline",
    module="trainer_engine.families.pixart_sigma.control",
)
"""A patch of 2 x 2 cells of 4 more channels, for each of the 1,152 numbers of a token."""

SPEC = FamilySpec(
    name="pixart_sigma",
    title="PixArt Sigma",
    description="Diffusion transformer of 600 to 900 million parameters with a T5 XXL text encoder and the SDXL autoencoder.",
    flavours=FLAVOURS,
    default_flavour="900M-1024-v0.6",
    model_types=("full", "lora"),
    objective="epsilon",
    short_shares=(0.94, 1.0),
    prediction_types=("epsilon", "v_prediction"),
    components=MappingProxyType(
        {
            "transformer": Component("transformer", "transformer.", Role.TRAINED, comfyui_prefix="transformer."),
            **frozen_components("vae", "text_encoder"),
        }
    ),
    network_classes=("PixArtTransformer2DModel", "Transformer2DModel"),
    prompts=PromptSpec(
        states=(TextStates(width="caption_channels", size="d_model", depth="num_layers", kind="t5"),),
        t5_folder="text_encoder",
        token_limit=300,
        text_encoders=("T5 XXL v1.1",),
        mask="additive",
        encoder_parameters=(4_762_310_656,),
    ),
    routing=RoutingSpec(along=MappingProxyType({"attention_mask": -1})),
    distillation=DistillationSpec(
        base="PixArt-alpha/PixArt-Sigma-XL-2-1024-MS", schedulers=(MappingProxyType({"_class_name": "LCMScheduler"}),)
    ),
    repeated_blocks=("BasicTransformerBlock",),
    latents=LatentSpec(
        alignment_px=64,
        channels=4,
        scale_factor_px=8,
        preview_decoder="madebyollin/taesdxl",
        autoencoder_classes=("AutoencoderKL",),
        scaling=Scaling(0.13025),
    ),
    sampling=SamplingSpec(
        samplers=("ddim", "ddpm", "euler", "euler-a", "unipc", "dpm++"),
        options=frozenset({"inference_scheduler_timestep_spacing"}),
    ),
    adapters=AdapterSpec(
        module_classes=("Attention", "FeedForward", "BasicTransformerBlock", "Linear", "Conv2d", "PatchEmbed", "AdaLayerNormSingle"),
        class_aliases=MappingProxyType({}),
        lycoris_start=MappingProxyType(
            {
                "algo": "lokr",
                "multiplier": 1.0,
                "bypass_mode": True,
                "full_matrix": True,
                "linear_dim": 10000,
                "linear_alpha": 1,
                "factor": 4,
                "apply_preset": {
                    "target_module": ["Attention", "FeedForward"],
                    "module_algo_map": {"FeedForward": {"factor": 4}, "Attention": {"factor": 2}},
                },
            }
        ),
        lora_targets=MappingProxyType({"all": ("to_q", "to_k", "to_v", "to_out.0")}),
        default_lora_target="all",
        base_precisions=("int8-quanto", "int4-quanto", *ANY_FAMILY),
    ),
    controlnet=ControlNetSpec(
        class_name="PixArtControlNetAdapterModel",
        module="trainer_engine.families.pixart_sigma.controlnet",
        joined="SteeredPixArt",
        pipeline="PixArtSigmaPipeline",
        parameters=MappingProxyType(dict.fromkeys(FLAVOURS, 294_917_760)),
        new_layers=r"controlnet_blocks\.\d+\.(before|after)_proj\.",
        sees_latents=True,
        matching=("num_attention_heads", "attention_head_dim", "cross_attention_dim"),
        settings=MappingProxyType({"num_layers": ControlNetSetting(least=1, most=41)}),
        unused=frozenset(),
    ),
    stages=StagesSpec(
        mode="pixart_validation_pipeline_mode",
        models=("pixart_validation_stage1_model", "pixart_validation_stage2_model"),
        flavours=MappingProxyType({"900M-1024-v0.7-stage1": "900M-1024-v0.7-stage2"}),
        usual="900M-1024-v0.7-stage1",
        shares_sampler=True,
    ),
    # Some of the published repositories hold the transformer alone; their authors keep everything else here.
    companion="PixArt-alpha/pixart_sigma_sdxlvae_T5_diffusers",
    licenses=MappingProxyType(dict.fromkeys(("600M-512", "600M-1024", "600M-2048"), MappingProxyType({"license": "openrail++"}))),
    aliases=("pixart", "pixart-sigma"),
    known_as=MappingProxyType(
        {
            "pixart_sigma": "600M-1024",
            "pixart": "600M-1024",
        }
    ),
    defaults=MappingProxyType({"max_grad_norm": 0.01, "validation_guidance": 4.0, "inference_scheduler_timestep_spacing": "linspace"}),
    parameters=PARAMETERS,
    control=CONTROL,
)
