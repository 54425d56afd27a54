"""A small Ideogram 4 in the real Hugging Face layout, with random weights: for tests."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, Ideogram4Transformer2DModel
from torch import nn

from trainer_engine.families.ideogram.spec import TEXT_LAYERS, UNCONDITIONAL
from trainer_engine.tiny_models.autoencoders import build_shuffled_vae
from trainer_engine.tiny_models.chat import QWEN_TEMPLATE, TEXT_WIDTH, VISION_MARKS, build_chat_tokenizer, build_qwen3_vl
from trainer_engine.tiny_models.hub_cache import write_pipeline_folder

IN_PARTS = "{% for part in message.content %}{{ part.text }}{% endfor %}"
NORM_SCALE = 0.2


def make_tiny(folder: Path, *, seed: int = 0) -> Path:
    """Write a pipeline into ``folder`` and return it. The global random state is left alone.

    The same seed gives the same bytes. The two networks have different weights, as the real ones, and the template takes messages in parts.
    """
    tokenizer = build_chat_tokenizer(*VISION_MARKS)
    tokenizer.chat_template = QWEN_TEMPLATE.replace("{{ message.content }}", IN_PARTS)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        parts = {
            "transformer": _network(),
            UNCONDITIONAL: _network(),
            "text_encoder": build_qwen3_vl(tokenizer, layers=TEXT_LAYERS[-1]).model,
            "tokenizer": tokenizer,
            "vae": build_shuffled_vae(),
            "scheduler": FlowMatchEulerDiscreteScheduler(),
        }
    write_pipeline_folder(folder, "Ideogram4Pipeline", parts)
    return folder


def _network() -> Ideogram4Transformer2DModel:
    network = Ideogram4Transformer2DModel(
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        intermediate_size=48,
        adaln_dim=16,
        llm_features_dim=len(TEXT_LAYERS) * TEXT_WIDTH,
        mrope_section=(4, 2, 2),
    )
    for name, parameter in network.named_parameters():  # ones would hide what is scaled
        if "norm" in name:
            nn.init.normal_(parameter, mean=1, std=NORM_SCALE)
    return network
