"""The layers of Flux.1's transformer by name, as adapters are put on them. Chroma has the same blocks without layers for modulation."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from trainer_engine.config.adapters.other_names import JointLayer, OriginalNames
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


DOUBLE, SINGLE = r"transformer_blocks\.(\d+)\.", r"single_transformer_blocks\.(\d+)\."
ORIGINAL_NAMES = OriginalNames(
    mark="single_transformer_blocks.0.proj_mlp",
    names=(
        (DOUBLE + r"attn\.to_out\.0", r"double_blocks.\1.img_attn.proj"),
        (DOUBLE + r"attn\.to_add_out", r"double_blocks.\1.txt_attn.proj"),
        (DOUBLE + r"ff\.net\.0\.proj", r"double_blocks.\1.img_mlp.0"),
        (DOUBLE + r"ff\.net\.2", r"double_blocks.\1.img_mlp.2"),
        (DOUBLE + r"ff_context\.net\.0\.proj", r"double_blocks.\1.txt_mlp.0"),
        (DOUBLE + r"ff_context\.net\.2", r"double_blocks.\1.txt_mlp.2"),
        (DOUBLE + r"norm1\.linear", r"double_blocks.\1.img_mod.lin"),
        (DOUBLE + r"norm1_context\.linear", r"double_blocks.\1.txt_mod.lin"),
        (SINGLE + "proj_out", r"single_blocks.\1.linear2"),
        (SINGLE + r"norm\.linear", r"single_blocks.\1.modulation.lin"),
        ("x_embedder", "img_in"),
        ("context_embedder", "txt_in"),
        (r"time_text_embed\.timestep_embedder\.linear_1", "time_in.in_layer"),
        (r"time_text_embed\.timestep_embedder\.linear_2", "time_in.out_layer"),
        (r"time_text_embed\.text_embedder\.linear_1", "vector_in.in_layer"),
        (r"time_text_embed\.text_embedder\.linear_2", "vector_in.out_layer"),
        (r"time_text_embed\.guidance_embedder\.linear_1", "guidance_in.in_layer"),
        (r"time_text_embed\.guidance_embedder\.linear_2", "guidance_in.out_layer"),
        ("proj_out", "final_layer.linear"),
    ),
    joint=(
        JointLayer(
            name=r"double_blocks.\1.img_attn.qkv",
            stem=DOUBLE + r"attn\.",
            parts=("to_q", "to_k", "to_v"),
            shares=(1, 1, 1),
        ),
        JointLayer(
            name=r"double_blocks.\1.txt_attn.qkv",
            stem=DOUBLE + r"attn\.",
            parts=("add_q_proj", "add_k_proj", "add_v_proj"),
            shares=(1, 1, 1),
        ),
        JointLayer(
            name=r"single_blocks.\1.linear1",
            stem=SINGLE,
            parts=("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
            shares=(1, 1, 1, 4),
        ),
    ),
)
"""Names in the code of Black Forest Labs, with which kohya's tools and others write adapters. The modulation of the last layer has its
halves in another order there, and no name here."""


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
