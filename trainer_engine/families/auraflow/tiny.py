"""A small AuraFlow in the real Hugging Face layout, with random weights: for tests."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AuraFlowTransformer2DModel, FlowMatchEulerDiscreteScheduler
from torch import nn
from transformers import UMT5Config, UMT5EncoderModel

from trainer_engine.tiny_models.autoencoders import build_vae
from trainer_engine.tiny_models.hub_cache import write_pipeline_folder
from trainer_engine.tiny_models.text import build_llama_tokenizer

SHIFT = 1.73
WIDTH, TEXT_WIDTH = 32, 32
MODULATION = 1.0
"""Standard deviation of what makes shifts, scales and gates: small gates would hide what attention sees."""
SQUARE = 32
"""Tokens along the edge of the square that it has positions for: 512 pixels."""


def make_tiny(folder: Path, *, seed: int = 0) -> Path:
    """Write the pipeline into ``folder`` and return it. The same seed gives the same bytes. The global random state is left alone."""
    tokenizer = build_llama_tokenizer()
    text = UMT5Config(
        vocab_size=len(tokenizer), d_model=TEXT_WIDTH, d_kv=8, d_ff=64, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu"
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer = AuraFlowTransformer2DModel(
            sample_size=8,
            num_mmdit_layers=2,
            num_single_dit_layers=2,
            attention_head_dim=16,
            num_attention_heads=WIDTH // 16,
            joint_attention_dim=TEXT_WIDTH,
            caption_projection_dim=WIDTH,
            pos_embed_max_size=SQUARE**2,
        )
        nn.init.normal_(transformer.register_tokens)  # small ones would hide what attention makes of them
        for name, parameter in transformer.named_parameters():
            if "norm" in name:
                nn.init.normal_(parameter, std=MODULATION)
        encoder = UMT5EncoderModel(text)
    parts = {
        "transformer": transformer,
        "text_encoder": encoder,
        "tokenizer": tokenizer,
        "vae": build_vae(),
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=SHIFT),
    }
    write_pipeline_folder(folder, "AuraFlowPipeline", parts, tokenizer=["transformers", "LlamaTokenizerFast"])
    return folder
