"""A small FLUX.3 in the real Hugging Face layout, with random weights: for tests."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import Flux3Transformer2DModel

from trainer_engine.families.flux3.spec import BASE, DISTILLED, TEXT_LAYERS
from trainer_engine.tiny_models.autoencoders import build_shuffled_vae
from trainer_engine.tiny_models.chat import TEXT_WIDTH, VISION_MARKS, build_chat_tokenizer, build_qwen3_vl
from trainer_engine.tiny_models.hub_cache import write_pipeline_folder


def make_tiny(folder: Path, *, flavour: str = BASE, seed: int = 0) -> Path:
    """Write the pipeline of a flavour into ``folder`` and return it. The global random state is left alone.

    The same seed gives the same bytes, of what reads prompts and images in every flavour. The text encoder has layers that are not
    read, and the autoencoder statistics that are not 0 and 1.
    """
    is_flow_map = flavour == DISTILLED
    tokenizer = build_chat_tokenizer(*VISION_MARKS)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoders = {
            "text_encoder": build_qwen3_vl(tokenizer, layers=TEXT_LAYERS[-1] + 2),
            "tokenizer": tokenizer,
            "vae": build_shuffled_vae(),
        }
        transformer = Flux3Transformer2DModel(
            num_layers=2,
            num_single_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=len(TEXT_LAYERS) * TEXT_WIDTH,
            timestep_channels=16,
            axes_dims_rope=(4, 4, 4, 4),
            flow_map=is_flow_map,
        )
    kind = "Flux3DistilledModularPipeline" if is_flow_map else "Flux3ModularPipeline"
    write_pipeline_folder(folder, kind, {"transformer": transformer, **encoders})
    return folder
