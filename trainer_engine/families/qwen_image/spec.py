"""Qwen-Image: a transformer with a stream for the prompt and one for the image; Qwen2.5-VL reads the prompts (Qwen team, 2025)."""

from __future__ import annotations

from types import MappingProxyType

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
from trainer_engine.config.text_states import TextStates
from trainer_engine.config.token_splitting import SplittingSpec

FLAVOURS = MappingProxyType(
    {
        "v1.0": "Qwen/Qwen-Image",
        "v2.0": "Qwen/Qwen-Image-2512",
        "edit-v1": "Qwen/Qwen-Image-Edit",
        "edit-v2": "Qwen/Qwen-Image-Edit-2509",
        "edit-v2+": "Qwen/Qwen-Image-Edit-2509",
        "edit-v3": "Qwen/Qwen-Image-Edit-2511",
    }
)
ONE_REFERENCE = frozenset({"edit-v1"})
"""Flavours whose published weights were trained with one reference, at which the text encoder looks closely."""
CLEAN_REFERENCES = frozenset({"edit-v2+"})
"""Flavours that give the tokens of references a timestep of 0, as 2511 does by its own configuration."""
EDITS = frozenset(flavour for flavour in FLAVOURS if flavour.startswith("edit-"))
ARCHITECTURES = MappingProxyType(
    {
        **dict.fromkeys(("v1.0", "v2.0"), "qwen-image"),
        "edit-v1": "qwen-image-edit",
        **dict.fromkeys(("edit-v2", "edit-v2+", "edit-v3"), "qwen-image-edit-plus"),
    }
)
ATTENTION = ("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0")

SPEC = FamilySpec(
    name="qwen_image",
    title="Qwen-Image",
    description="Flow-matching transformer of 20 billion parameters with a Qwen2.5-VL 7B text encoder. v2.0 is Qwen-Image-2512. The "
    "flavours that edit look at references, and so does their text encoder: edit-v2 is 2509, edit-v3 is 2511.",
    flavours=FLAVOURS,
    default_flavour="v2.0",
    model_types=("full", "lora"),
    objective="flow_matching",
    prediction_types=("flow_matching",),
    components=MappingProxyType(
        {"transformer": Component("transformer", "transformer.", Role.TRAINED), **frozen_components("vae", "text_encoder")}
    ),
    file_layouts=(FileLayout(title="Qwen-Image", mark=".txt_mod.1."),),
    network_classes=("QwenImageTransformer2DModel",),
    prompts=PromptSpec(
        states=(TextStates(width="joint_attention_dim"),),
        token_limit=1024,
        text_encoders=("Qwen2.5-VL 7B",),
        joins_sequence=True,
        mask="boolean",
        encoder_parameters=(7_070_619_136,),
        width=3584,
    ),
    # diffusers has no decoder for taew2_1, whose latents have five dimensions.
    latents=LatentSpec(
        alignment_px=32,
        channels=16,
        scale_factor_px=8,
        previews_in_full=True,
        autoencoder=CAUSAL_AUTOENCODER,
        autoencoder_classes=("AutoencoderKLQwenImage",),
    ),
    splitting=SplittingSpec(splits_prompt=True, splits_masks=True),
    repeated_blocks=("QwenImageTransformerBlock",),
    distillation=DistillationSpec(base=FLAVOURS["v2.0"]),
    sampling=SamplingSpec(samplers=("euler", "unipc", "dpm++")),
    adapters=AdapterSpec(
        module_classes=("Attention", "FeedForward", "QwenImageTransformerBlock", "Linear"),
        lycoris_start=lokr_start(16, {"Attention": 16, "FeedForward": 8}),
        lora_targets=MappingProxyType({"attention": ATTENTION}),
        default_lora_target="attention",
        base_precisions=QUANTISED,
    ),
    known_as=MappingProxyType({"qwen": "v1.0", "qwen_image": "v1.0", "qwenimage": "v1.0", "qwen_image_2512": "v2.0"}),
    activation_share=1.43,
    poor_precisions=MappingProxyType({"fp16": "activations are reported to overflow"}),
    defaults=MappingProxyType(
        {"resolution": 1024, "flow_schedule_shift": 1.73, "validation_guidance": 4.0, "validation_num_inference_steps": 30}
    ),
    parameters=MappingProxyType(dict.fromkeys(FLAVOURS, 20_430_401_088)),
    licenses=MappingProxyType(dict.fromkeys(FLAVOURS, MappingProxyType({"license": "apache-2.0"}))),
    architectures=ARCHITECTURES,
    takes_references=EDITS,
    needs_references=EDITS,
    reference_folders=("processor",),
)
