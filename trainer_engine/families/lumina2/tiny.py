"""A small Lumina-Image 2.0 in the real Hugging Face layout, with random weights: for tests."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, Lumina2Transformer2DModel
from torch import nn

from trainer_engine.families.lumina2.prompts import BEFORE_PROMPT
from trainer_engine.tiny_models.autoencoders import build_vae
from trainer_engine.tiny_models.gemma import TEXT_WIDTH, build_gemma2, build_gemma_tokenizer
from trainer_engine.tiny_models.hub_cache import write_pipeline_folder

SHIFT, SHIFT_FACTOR = 6.0, 0.1159
NORM_SPREAD = 0.2


def make_tiny(folder: Path, *, seed: int = 0) -> Path:
    """Write the pipeline into ``folder`` and return it. The same seed gives the same bytes. The global random state is left alone."""
    tokenizer = build_gemma_tokenizer(BEFORE_PROMPT.split()[1:])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer = Lumina2Transformer2DModel(
            sample_size=8,
            hidden_size=48,
            num_layers=2,
            num_refiner_layers=1,
            num_attention_heads=6,
            num_kv_heads=2,
            multiple_of=16,
            axes_dim_rope=(4, 2, 2),
            cap_feat_dim=TEXT_WIDTH,
        )
        for name, parameter in transformer.named_parameters():
            if parameter.ndim == 1 and "norm" in name and name.endswith("weight"):  # ones would hide a norm of something else
                nn.init.normal_(parameter, mean=1, std=NORM_SPREAD)
        encoder = build_gemma2(len(tokenizer))
    parts = {
        "transformer": transformer,
        "text_encoder": encoder,
        "tokenizer": tokenizer,
        "vae": build_vae(16, shift=SHIFT_FACTOR, quant_convs=False),
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=SHIFT),
    }
    write_pipeline_folder(folder, "Lumina2Pipeline", parts)
    return folder
