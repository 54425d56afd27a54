"""The network of LongCat-Image: its sizes and inputs, how diffusers calls it, and what other programs read of adapters on it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import LongCatImagePipeline, LongCatImageTransformer2DModel
from torch import Tensor

from tests.bench.networks import SHIFTED, WIDE_HEADS, WIDE_ROTARY, Network, cells_of, places, squares_of
from tests.trainer_engine.families.adapter_facts import JOINED, SIGMAS, AdapterFacts, Draw
from trainer_engine.batches.batch import Batch
from trainer_engine.families.longcat_image.spec import SPEC

TOKENS = SPEC.prompts.token_limit


def call_longcat(network: Callable[..., Any], noisy: Tensor, batch: Batch) -> Tensor:
    height, width = noisy.shape[-2:]
    embeds = batch.prompts["embeds"]
    words = torch.arange(embeds.shape[1], device=noisy.device)
    output: Tensor = network(
        hidden_states=squares_of(noisy),
        timestep=batch.timesteps,
        encoder_hidden_states=embeds,
        txt_ids=torch.stack([torch.zeros_like(words), words, words], dim=1),
        img_ids=(places(1, height // 2, width // 2) + torch.tensor([1, len(words), len(words)])).to(noisy.device),
        return_dict=False,
    )[0]
    return cells_of(output, noisy)


def output_of_longcat(network: Any, prompt: Tensor, draw: Draw) -> Tensor:
    positions = torch.arange(15)[:, None].expand(-1, 3)
    given = {"timestep": torch.tensor(SIGMAS), "txt_ids": positions[:9], "img_ids": positions[9:], "return_dict": False}
    output: Tensor = network(draw(2, 6, 64), prompt[:, :9], **given)[0]
    return output


def pipeline_in(folder: Path) -> Any:
    """Without its processor, which needs torchvision; it rewrites prompts with it."""
    pipeline = LongCatImagePipeline.from_pretrained(folder, text_processor=None)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


NETWORK = Network(
    family=SPEC.name,
    title="LongCat-Image",
    make=LongCatImageTransformer2DModel,
    architecture={"num_layers": 10, "num_single_layers": 20, "joint_attention_dim": 3584},
    narrow={
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "axes_dims_rope": (4, 6, 6),
        "joint_attention_dim": 16,
        "pooled_projection_dim": 16,
    },
    shallow={"num_layers": 1, "num_single_layers": 1},
    deeper={"num_layers": 2, "num_single_layers": 3},
    wider={**WIDE_HEADS, **WIDE_ROTARY, "num_single_layers": 4},
    schedule=SHIFTED,
    text=lambda architecture: {"embeds": (TOKENS, architecture["joint_attention_dim"])},
    call=call_longcat,
)
ADAPTERS = AdapterFacts(
    output=output_of_longcat,
    comfyui=rf"""transformer\.(
        transformer_blocks\.\d+\.({JOINED}|norm1(_context)?\.linear|ff(_context)?\.net\.(0\.proj|2))
        |single_transformer_blocks\.\d+\.(attn\.to_[qkv]|proj_mlp|proj_out|norm\.linear)
        |x_embedder|context_embedder|proj_out|norm_out\.linear)""",
    # ComfyUI knows the layers of Flux.1 by their names in diffusers. This network has another name for the embedding of time.
    not_loaded=r"^time_embed\.",
    open_pipeline=pipeline_in,
    loads_in_diffusers=False,
)
