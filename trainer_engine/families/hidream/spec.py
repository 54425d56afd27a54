"""HiDream-I1: a transformer whose feed-forward layers are mixtures of experts, and four text encoders (HiDream.ai, 2025)."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from trainer_engine.config.distillation import FEW_STEP_WORDS, DistillationSpec
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
from trainer_engine.config.one_file.layout import FileLayout
from trainer_engine.config.precisions import QUANTISED
from trainer_engine.config.text_states import TextStates, stated_layers

FULL = "HiDream-ai/HiDream-I1-Full"
FLAVOURS = MappingProxyType({"full": FULL, "dev": "HiDream-ai/HiDream-I1-Dev", "fast": "HiDream-ai/HiDream-I1-Fast"})
DISTILLED = ("dev", "fast")
LLAMA = "terminusresearch/HiDream-I1-Llama-3.1-8B-Instruct"
"""Llama in the folders of the pipeline; the repositories of HiDream-I1 have everything else."""
ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3", "text_encoder_4")
TOKENS = 128
"""Tokens of a prompt, for each text encoder."""
LLAMA_LAYERS, STATE_WIDTH, POOLED_WIDTH = 32, 4096, 2048
ATTENTION = ("to_q", "to_k", "to_v", "to_out")
"""The network has a layer ``to_out`` where others have a list with a layer and dropout: the format's ``to_out.0`` is this one."""


def states_read(config: Mapping[str, Any]) -> tuple[int, ...]:
    """The states of Llama that the blocks of a network with this configuration read, each once, 1 for those of its first layer.

    None of them if it lists no layers.
    """
    return tuple(sorted(set(stated_layers(config, "llama_layers"))))


SPEC = FamilySpec(
    name="hidream",
    title="HiDream-I1",
    description="Flow-matching transformer of 17 billion parameters, half of which each token passes through: its feed-forward layers are "
    "mixtures of experts. CLIP L, OpenCLIP bigG, T5 XXL and Llama 3.1 8B read the prompts. Full is the flavour to train; dev and fast are "
    "distilled.",
    flavours=FLAVOURS,
    default_flavour="full",
    model_types=("full", "lora"),
    objective="flow_matching",
    prediction_types=("flow_matching",),
    components=MappingProxyType(
        {
            # diffusers knows both prefixes, and no alphas.
            "transformer": Component("transformer", "transformer.", Role.TRAINED, comfyui_takes_alpha=False),
            **frozen_components("vae", *ENCODERS),
        }
    ),
    file_layouts=(FileLayout(title="HiDream-I1", mark="double_stream_blocks.0.block.adaLN_modulation."),),
    network_classes=("HiDreamImageTransformer2DModel",),
    prompts=PromptSpec(
        states=(
            TextStates(width="text_emb_dim", size="projection_dim", folders=ENCODERS[:2]),
            TextStates(width="caption_channels.0", size="d_model", depth="num_layers", kind="t5", folders=ENCODERS[2:3]),
            TextStates(width="caption_channels.1", kind="llama", layers_key="llama_layers", folders=ENCODERS[3:]),
        ),
        token_limit=TOKENS,
        text_encoders=("CLIP L/14", "OpenCLIP bigG/14", "T5 XXL v1.1", "Llama 3.1 8B"),
        text_encoder_folders=ENCODERS,
        t5_folder="text_encoder_3",
        joins_sequence=True,
        added_tokens=2 * TOKENS,  # the last states of Llama, and those that each block takes
        encoder_parameters=(123_781_632, 694_840_320, 4_762_310_656, 7_504_924_672),
        width=(LLAMA_LAYERS + 1) * STATE_WIDTH,
        stacked_layers=LLAMA_LAYERS,
        pooled=POOLED_WIDTH,
        stores_padding=True,
    ),
    latents=LatentSpec(
        alignment_px=64,
        channels=16,
        scale_factor_px=8,
        canvas_px=1024 * 1024,
        preview_decoder="madebyollin/taef1",
        autoencoder_classes=("AutoencoderKL",),
        scaling=Scaling(0.3611, 0.1159),
    ),
    repeated_blocks=("HiDreamBlock",),
    distillation=DistillationSpec(
        base=FULL,
        flavours=frozenset(DISTILLED),
        repositories=frozenset(FLAVOURS[name] for name in DISTILLED),
        words=FEW_STEP_WORDS | set(DISTILLED),
        schedulers=({"_class_name": "FlowMatchLCMScheduler"},),
    ),
    sampling=SamplingSpec(samplers=("euler", "unipc", "dpm++")),
    adapters=AdapterSpec(
        module_classes=("HiDreamAttention", "HiDreamImageFeedForwardSwiGLU", "MOEFeedForwardSwiGLU", "HiDreamBlock", "Linear"),
        class_aliases=MappingProxyType({"Attention": ("HiDreamAttention",), "FeedForward": ("HiDreamImageFeedForwardSwiGLU",)}),
        lycoris_start=lokr_start(16, {"HiDreamAttention": 16}),
        lora_targets=MappingProxyType({"attention": ATTENTION}),
        default_lora_target="attention",
        base_precisions=QUANTISED,
    ),
    aliases=("hidream-i1", "hidream_i1"),
    known_as=MappingProxyType({"hidream": "full", "hi_dream_full": "full", "hidream_i1": "full", "hidream_full": "full"}),
    companion=LLAMA,
    expert_share=0.5,
    activation_share=1.35,  # norms of queries and keys, shifts and gates, and the tokens that are sorted by expert
    defaults=MappingProxyType(
        {
            "resolution": 1024,
            "flow_schedule_shift": 3.0,
            "validation_guidance": 5.0,
            "validation_num_inference_steps": 50,
        }
    ),
    flavour_defaults=MappingProxyType(
        {
            "dev": MappingProxyType({"flow_schedule_shift": 6.0, "validation_guidance": 0.0, "validation_num_inference_steps": 28}),
            "fast": MappingProxyType({"validation_guidance": 0.0, "validation_num_inference_steps": 16}),
        }
    ),
    parameters=MappingProxyType(dict.fromkeys(FLAVOURS, 17_105_733_184)),
    licenses=MappingProxyType(dict.fromkeys(FLAVOURS, MappingProxyType({"license": "mit"}))),
)
