"""A small Chroma in the real Hugging Face layout, with random weights: for tests."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import ChromaTransformer2DModel, FlowMatchEulerDiscreteScheduler
from torch import nn
from transformers import T5Config, T5EncoderModel

from trainer_engine.tiny_models.autoencoders import build_vae
from trainer_engine.tiny_models.hub_cache import write_pipeline_folder
from trainer_engine.tiny_models.text import build_t5_tokenizer

TEXT_WIDTH = 32
SHIFT_FACTOR = 0.1159
MODULATION = 0.15
"""Standard deviation of shifts, scales and gates: small gates would hide what attention sees."""


def make_tiny(folder: Path, *, seed: int = 0) -> Path:
    """Write the pipeline into ``folder`` and return it. The same seed gives the same bytes. The global random state is left alone."""
    tokenizer = build_t5_tokenizer()
    text = T5Config(
        vocab_size=len(tokenizer), d_model=TEXT_WIDTH, d_kv=8, d_ff=64, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu"
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer = ChromaTransformer2DModel(
            num_layers=2,
            num_single_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=TEXT_WIDTH,
            axes_dims_rope=(4, 6, 6),
            approximator_num_channels=16,
            approximator_hidden_dim=24,
            approximator_layers=2,
        )
        nn.init.normal_(transformer.distilled_guidance_layer.out_proj.weight, std=MODULATION)
        encoder = T5EncoderModel(text)
    parts = {
        "transformer": transformer,
        "text_encoder": encoder,
        "tokenizer": tokenizer,
        "vae": build_vae(16, shift=SHIFT_FACTOR, quant_convs=False),
        "scheduler": FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
    }
    write_pipeline_folder(folder, "ChromaPipeline", parts)
    return folder
