"""Kolors: the UNet of Stable Diffusion XL with ChatGLM3 as its text encoder and a noise schedule of 1,100 timesteps (Kolors Team, 2024)."""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType

from trainer_engine.config.family_parts import LatentSpec, PromptSpec, Scaling, frozen_components
from trainer_engine.config.family_spec import FamilySpec
from trainer_engine.config.one_file.layout import FileLayout
from trainer_engine.config.text_states import TextStates
from trainer_engine.families.common import unet_facts

FLAVOURS = MappingProxyType({"1.0": "terminusresearch/kwai-kolors-1.0"})
TEXT_WIDTH = 4096
SPEC = FamilySpec(
    name="kolors",
    title="Kolors",
    description="UNet of 2.6 billion parameters with a ChatGLM3 6B text encoder, which reads English and Chinese, trained at 1024 pixels.",
    flavours=FLAVOURS,
    default_flavour="1.0",
    model_types=("full", "lora"),
    objective="epsilon",
    prediction_types=("epsilon", "v_prediction"),
    components=MappingProxyType({"unet": unet_facts.UNET, **frozen_components("vae", "text_encoder")}),
    network_classes=("UNet2DConditionModel",),
    foreign_networks=unet_facts.UNPROJECTED_NETWORKS,
    prompts=PromptSpec(
        states=(TextStates(width="encoder_hid_dim", depth="num_layers", kind="chatglm"),),
        token_limit=256,
        text_encoders=("ChatGLM3 6B",),
        encoder_parameters=(6_243_584_000,),
        width=TEXT_WIDTH,
        pooled=TEXT_WIDTH,
        stores_padding=True,
        replaced_code=("tokenization_chatglm.ChatGLMTokenizer",),
    ),
    latents=LatentSpec(
        alignment_px=64,
        channels=4,
        scale_factor_px=8,
        preview_decoder="madebyollin/taesdxl",
        autoencoder_classes=("AutoencoderKL",),
        scaling=Scaling(0.13025),
    ),
    sampling=replace(unet_facts.SAMPLING, options=frozenset({"inference_scheduler_timestep_spacing"})),
    repeated_blocks=unet_facts.REPEATED_BLOCKS,
    distillation=unet_facts.distillation(FLAVOURS["1.0"]),
    adapters=unet_facts.ADAPTERS,
    sees_image_sizes=True,
    file_layouts=(FileLayout(title="Kolors", mark="encoder_hid_proj.weight"),),
    aliases=("kwai-kolors",),
    known_as=MappingProxyType({"kolors": "1.0", "kwai_kolors": "1.0", "kolors_diffusers": "1.0"}),
    licenses=MappingProxyType({"1.0": MappingProxyType({"license": "apache-2.0"})}),
    defaults=MappingProxyType({"resolution": 1024, "validation_guidance": 5.0, "validation_noise_scheduler": "euler"}),
    convolution_share=0.13,
    parameters=MappingProxyType({"1.0": 2_579_458_820}),
)
