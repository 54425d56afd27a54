"""A small Stable Diffusion 3.5 in the real Hugging Face layout, with random weights: for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
from transformers import T5Config, T5EncoderModel

from trainer_engine.tiny_models.autoencoders import build_vae
from trainer_engine.tiny_models.hub_cache import write_pipeline_folder
from trainer_engine.tiny_models.stable_diffusion import TEXT_WIDTH, tiny_clip_text
from trainer_engine.tiny_models.text import build_clip_tokenizer, build_t5_tokenizer

JOINT_WIDTH = 80
"""Wider than the states of both CLIPs side by side."""


def make_tiny(folder: Path, *, with_t5: bool = True, seed: int = 0) -> Path:
    """Write the pipeline into ``folder`` and return it. The same seed gives the same bytes. The global random state is left alone."""
    tokenizer, t5_tokenizer = build_clip_tokenizer(), build_t5_tokenizer()
    text = T5Config(
        vocab_size=len(t5_tokenizer), d_model=JOINT_WIDTH, d_kv=8, d_ff=64, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu"
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer = SD3Transformer2DModel(
            sample_size=16,
            num_layers=3,
            attention_head_dim=8,
            num_attention_heads=4,
            joint_attention_dim=JOINT_WIDTH,
            caption_projection_dim=32,
            pooled_projection_dim=2 * TEXT_WIDTH,
            pos_embed_max_size=32,
            dual_attention_layers=(0, 1),
            qk_norm="rms_norm",
        )
        clip, open_clip = (tiny_clip_text(tokenizer, projection=TEXT_WIDTH) for _ in range(2))
        t5 = T5EncoderModel(text)
    parts: dict[str, Any] = {
        "transformer": transformer,
        "text_encoder": clip,
        "text_encoder_2": open_clip,
        "tokenizer": tokenizer,
        "tokenizer_2": tokenizer,
        "vae": build_vae(16, shift=0.0609, quant_convs=False),
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0),
    }
    t5_parts: dict[str, Any] = {"text_encoder_3": t5, "tokenizer_3": t5_tokenizer}
    missing: dict[str, Any] = {} if with_t5 else dict.fromkeys(t5_parts)
    write_pipeline_folder(folder, "StableDiffusion3Pipeline", {**parts, **(t5_parts if with_t5 else {})}, **missing)
    return folder
