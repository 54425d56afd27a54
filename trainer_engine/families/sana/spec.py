"""Sana: a transformer with linear attention over the latents of a deep compression autoencoder (Xie et al., 2024)."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from trainer_engine.config.distillation import FEW_STEP_WORDS, DistillationSpec
from trainer_engine.config.family_costs import AutoencoderFacts
from trainer_engine.config.family_parts import (
    AdapterSpec,
    Component,
    LatentSpec,
    PromptSpec,
    Role,
    SamplingSpec,
    Scaling,
    frozen_components,
)
from trainer_engine.config.family_spec import FamilySpec
from trainer_engine.config.precisions import ANY_FAMILY
from trainer_engine.config.text_states import TextStates

PUBLISHER = "Efficient-Large-Model"
FLAVOURS = MappingProxyType(
    {
        "sana1.5-4.8b-1024": f"{PUBLISHER}/SANA1.5_4.8B_1024px_diffusers",
        "sana1.5-1.6b-1024": f"{PUBLISHER}/SANA1.5_1.6B_1024px_diffusers",
        "sana1.0-1.6b-2048": f"{PUBLISHER}/Sana_1600M_2Kpx_BF16_diffusers",
        "sana1.0-1.6b-1024": f"{PUBLISHER}/Sana_1600M_1024px_BF16_diffusers",
        "sana1.0-600m-1024": f"{PUBLISHER}/Sana_600M_1024px_diffusers",
        "sana1.0-600m-512": f"{PUBLISHER}/Sana_600M_512px_diffusers",
    }
)
PARAMETERS = MappingProxyType(
    {
        "sana1.5-4.8b-1024": 4_721_825_952,
        "sana1.5-1.6b-1024": 1_604_641_952,
        **dict.fromkeys(("sana1.0-1.6b-2048", "sana1.0-1.6b-1024"), 1_604_462_752),
        **dict.fromkeys(("sana1.0-600m-1024", "sana1.0-600m-512"), 591_747_872),
    }
)
OTHER_SIZES = MappingProxyType({"sana1.0-1.6b-2048": 2048, "sana1.0-600m-512": 512})
"""Flavour -> edge in pixels of the images that its weights were trained with, if it is not 1024."""


def license_of(repository: str) -> Mapping[str, str]:
    """The license of the weights in a repository."""
    link = f"https://huggingface.co/{repository}/blob/main/LICENSE.txt"
    return MappingProxyType({"license": "other", "license_name": "nscl-v2-custom", "license_link": link})


SPEC = FamilySpec(
    name="sana",
    title="Sana",
    description="Flow-matching transformers of 0.6 to 4.8 billion parameters with linear attention. A token stands for 32 x 32 pixels. "
    "Gemma 2 2B reads each prompt behind an instruction that asks for a better one.",
    flavours=FLAVOURS,
    default_flavour="sana1.5-4.8b-1024",
    model_types=("full", "lora"),
    objective="flow_matching",
    prediction_types=("flow_matching",),
    components=MappingProxyType(
        {
            # ComfyUI has no network of its own for Sana; nodes for it generate with diffusers, which takes no alpha.
            "transformer": Component("transformer", "transformer.", Role.TRAINED, comfyui_prefix="transformer.", comfyui_takes_alpha=False),
            **frozen_components("vae", "text_encoder"),
        }
    ),
    network_classes=("SanaTransformer2DModel",),
    foreign_networks=MappingProxyType({"Sana Sprint": MappingProxyType({"guidance_embeds": True})}),
    prompts=PromptSpec(
        states=(TextStates(width="caption_channels", kind="gemma2"),),
        token_limit=300,
        text_encoders=("Gemma 2 2B",),
        mask="additive",
        pads_to_limit=True,
        encoder_parameters=(2_614_341_888,),
        width=2304,
    ),
    latents=LatentSpec(
        alignment_px=64,
        channels=32,
        scale_factor_px=32,
        token_px=32,
        previews_in_full=True,  # the Tiny AutoEncoder for these latents is published in no layout that diffusers loads
        autoencoder=AutoencoderFacts(parameters=312_250_275, width=128, encoding=5.05, decoding=4.55, tile_px=512),
        autoencoder_classes=("AutoencoderDC",),
        scaling=Scaling(0.41407),
    ),
    repeated_blocks=("SanaTransformerBlock",),
    distillation=DistillationSpec(
        base=FLAVOURS["sana1.5-1.6b-1024"],
        words=FEW_STEP_WORDS | {"sprint"},
        schedulers=(MappingProxyType({"_class_name": "SCMScheduler"}),),
    ),
    sampling=SamplingSpec(samplers=("euler", "unipc", "dpm++"), multiple_px=32),
    adapters=AdapterSpec(
        module_classes=("Attention", "GLUMBConv", "SanaTransformerBlock", "Linear", "Conv2d"),
        class_aliases=MappingProxyType({"FeedForward": ("GLUMBConv",)}),
        lycoris_start=MappingProxyType(
            {
                "algo": "lokr",
                "multiplier": 1.0,
                "bypass_mode": True,
                "full_matrix": True,
                "linear_dim": 10000,
                "linear_alpha": 1,
                "factor": 4,
                "apply_preset": {"target_module": ["Attention"], "module_algo_map": {"Attention": {"factor": 2}}},
            }
        ),
        lora_targets=MappingProxyType({"attention": ("to_q", "to_k", "to_v", "to_out.0")}),
        default_lora_target="attention",
        base_precisions=("int8-quanto", "int4-quanto", *ANY_FAMILY),
    ),
    known_as=MappingProxyType({"sana": "sana1.0-1.6b-1024"}),
    convolution_share=0.47,
    activation_share=1.9,  # norms of queries and keys, the parts of linear attention; convolutions are counted apart
    flavour_activation_shares=MappingProxyType({flavour: 1.3 for flavour in FLAVOURS if flavour.startswith("sana1.0-")}),  # without norms
    short_shares=(1.8, 1.3),  # queries, keys and values of linear attention, and norms, in float32
    poor_precisions=MappingProxyType({"fp16": "activations are reported to overflow"}),
    defaults=MappingProxyType(
        {
            "resolution": 1024,
            "flow_schedule_shift": 3.0,
            "validation_guidance": 4.5,
            "validation_num_inference_steps": 20,
            "vae_dtype": "fp32",
        }
    ),
    flavour_defaults=MappingProxyType({flavour: MappingProxyType({"resolution": edge}) for flavour, edge in OTHER_SIZES.items()}),
    parameters=PARAMETERS,
    licenses=MappingProxyType({flavour: license_of(repository) for flavour, repository in FLAVOURS.items()}),
    architectures=MappingProxyType(dict.fromkeys(FLAVOURS, "sana")),
)
