"""A small Z-Image in the real Hugging Face layout, with random weights: for tests."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, ZImageTransformer2DModel
from torch import nn

from trainer_engine.tiny_models.autoencoders import build_vae
from trainer_engine.tiny_models.chat import TEXT_WIDTH, build_chat_tokenizer, build_qwen3
from trainer_engine.tiny_models.hub_cache import write_pipeline_folder

SHIFT_FACTOR = 0.1159
PAD_SCALE = 0.5


def make_tiny(folder: Path, *, seed: int = 0) -> Path:
    """Write the pipeline into ``folder`` and return it. The same seed gives the same bytes. The global random state is left alone."""
    tokenizer = build_chat_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer = ZImageTransformer2DModel(
            dim=48, n_layers=2, n_refiner_layers=1, n_heads=3, n_kv_heads=3, cap_feat_dim=TEXT_WIDTH, axes_dims=[4, 6, 6]
        )
        for token in (transformer.x_pad_token, transformer.cap_pad_token):  # zeros would hide what is padded
            nn.init.normal_(token, std=PAD_SCALE)
        encoder = build_qwen3(len(tokenizer)).model
    parts = {
        "transformer": transformer,
        "text_encoder": encoder,
        "tokenizer": tokenizer,
        "vae": build_vae(16, shift=SHIFT_FACTOR, quant_convs=False),
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0),
    }
    write_pipeline_folder(folder, "ZImagePipeline", parts)
    return folder
