"""The layers of Flux.1's transformer by name, as adapters are put on them. Chroma has the same blocks without layers for modulation."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from trainer_engine.config.family_parts import AdapterSpec, lokr_start
from trainer_engine.config.precisions import QUANTISED

IMAGE_ATTENTION = ("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0")
PROMPT_ATTENTION = ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out")
IMAGE_FEED_FORWARD = ("ff.net.0.proj", "ff.net.2", "proj_mlp")
PROMPT_FEED_FORWARD = ("ff_context.net.0.proj", "ff_context.net.2")
SINGLE_BLOCKS = 38
SINGLE_OUTPUTS = tuple(f"single_transformer_blocks.{number}.proj_out" for number in range(SINGLE_BLOCKS))
EVERYTHING = (*IMAGE_ATTENTION, *PROMPT_ATTENTION, *IMAGE_FEED_FORWARD, *PROMPT_FEED_FORWARD, *SINGLE_OUTPUTS)
"""Every linear layer of the blocks but those that make a modulation of the timestep."""
LORA_TARGETS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "all": (*IMAGE_ATTENTION, *PROMPT_ATTENTION),
        "mmdit": (*IMAGE_ATTENTION, *PROMPT_ATTENTION, *SINGLE_OUTPUTS),
        "context": PROMPT_ATTENTION,
        "context+ffs": (*PROMPT_ATTENTION, *PROMPT_FEED_FORWARD),
        "all+ffs": EVERYTHING,
        "all+ffs+embedder": (*EVERYTHING, "x_embedder"),
        "ai-toolkit": EVERYTHING,
        "tiny": ("single_transformer_blocks.7.proj_out", "single_transformer_blocks.20.proj_out"),
        "nano": ("single_transformer_blocks.7.proj_out",),
    }
)
"""Values of ``flux_lora_target`` -> endings of the names of layers, without what a family adds of its own."""


def flux_adapters(blocks: tuple[str, str], more: Mapping[str, tuple[str, ...]] = MappingProxyType({})) -> AdapterSpec:
    """The modules that adapters are put on. ``blocks``: classes of the double and the single ones; ``more``: further named layers."""
    return AdapterSpec(
        module_classes=("FluxAttention", "FeedForward", *blocks, "Linear"),
        class_aliases=MappingProxyType({"Attention": ("FluxAttention",)}),
        lycoris_start=lokr_start(16, {"FluxAttention": 16, "FeedForward": 8}),
        lora_targets=MappingProxyType({**LORA_TARGETS, **more}),
        default_lora_target="all",
        lora_target_option="flux_lora_target",
        slider_targets=(*IMAGE_ATTENTION, "attn.to_qkv"),
        base_precisions=QUANTISED,
    )
