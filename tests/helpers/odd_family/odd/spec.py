"""Facts of a family that no shipped one resembles."""

from __future__ import annotations

from types import MappingProxyType

from trainer_engine.config.family_parts import AdapterSpec, Component, LatentSpec, PromptSpec, Role, SamplingSpec, frozen_components
from trainer_engine.config.family_spec import FamilySpec

SPEC = FamilySpec(
    name="odd",
    title="Odd",
    description="Two networks that share the noise levels, latents of five dimensions, and prompts of any length that see images.",
    flavours=MappingProxyType({"only": "nobody/odd"}),
    default_flavour="only",
    model_types=("full", "lora"),
    objective="flow_matching",
    prediction_types=("flow_matching",),
    components=MappingProxyType(
        {
            "transformer": Component("transformer", "transformer.", Role.TRAINED),
            "transformer_2": Component(
                "transformer_2", "transformer_2.", Role.TRAINED, comfyui_prefix="low_noise.", lora_targets=("to_q",)
            ),
            **frozen_components("vae", "text_encoder"),
        }
    ),
    prompts=PromptSpec(t5_folder="text_encoder", token_limit=64, text_encoders=("UMT5",)),
    latents=LatentSpec(alignment_px=8, channels=16, scale_factor_px=8),
    sampling=SamplingSpec(samplers=("euler",), multiple_px=8),
    adapters=AdapterSpec(
        module_classes=("Attention", "Linear"), lora_targets=MappingProxyType({"all": ("to_q", "to_v")}), default_lora_target="all"
    ),
    parameters=MappingProxyType({"only": 100_000}),
    takes_references=frozenset({"only"}),
)
