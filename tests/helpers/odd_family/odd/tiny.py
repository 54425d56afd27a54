"""A model of the odd family with random weights, in the layout of a pipeline with two transformers."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, SanaVideoTransformer3DModel
from transformers import UMT5Config, UMT5EncoderModel

from trainer_engine.tiny_models.hub_cache import write_pipeline_folder
from trainer_engine.tiny_models.text import build_t5_tokenizer

WIDTH = 32


def make_tiny(folder: Path, *, seed: int = 0) -> Path:
    """Write the pipeline into ``folder`` and return it. Patches are one cell, so a token is a cell."""
    tokenizer = build_t5_tokenizer()
    text = UMT5Config(vocab_size=len(tokenizer), d_model=WIDTH, d_kv=8, d_ff=64, num_layers=1, num_heads=4, feed_forward_proj="gated-gelu")
    heads = {"num_attention_heads": 2, "attention_head_dim": 12, "num_cross_attention_heads": 2, "cross_attention_head_dim": 12}
    shape = {**heads, "cross_attention_dim": 24, "caption_channels": WIDTH, "num_layers": 1, "mlp_ratio": 1.0}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        high, low = (SanaVideoTransformer3DModel(patch_size=(1, 1, 1), **shape) for _ in range(2))
        vae, encoder = AutoencoderKLWan(base_dim=4, num_res_blocks=1), UMT5EncoderModel(text)
    parts = {"transformer": high, "transformer_2": low, "text_encoder": encoder, "tokenizer": tokenizer, "vae": vae}
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    write_pipeline_folder(folder, "SanaVideoPipeline", {**parts, "scheduler": scheduler}, boundary_ratio=0.5)
    return folder
