"""A small Flux.2 in the real Hugging Face layout, with random weights: for tests."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, Flux2Transformer2DModel

from trainer_engine.families.flux2.spec import DEV_LAYERS, KLEIN_LAYERS
from trainer_engine.tiny_models.autoencoders import build_shuffled_vae
from trainer_engine.tiny_models.chat import TEXT_WIDTH, build_chat_tokenizer, build_mistral3, build_mistral_tokenizer, build_qwen3
from trainer_engine.tiny_models.hub_cache import write_pipeline_folder


def make_tiny(folder: Path, *, flavour: str = "klein-9b", seed: int = 0) -> Path:
    """Write the pipeline of a flavour into ``folder`` and return it. The global random state is left alone.

    The text encoders have one layer more than the network reads, and the autoencoder statistics that are not 0 and 1.
    """
    is_dev = flavour == "dev"
    tokenizer = build_mistral_tokenizer() if is_dev else build_chat_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer = Flux2Transformer2DModel(
            num_layers=2,
            num_single_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=3 * TEXT_WIDTH,
            timestep_guidance_channels=16,
            axes_dims_rope=(4, 4, 4, 4),
            guidance_embeds=is_dev,
        )
        make = build_mistral3 if is_dev else build_qwen3
        encoder = make(len(tokenizer), layers=(DEV_LAYERS if is_dev else KLEIN_LAYERS)[-1] + 2)
        vae = build_shuffled_vae()
    parts = {
        "transformer": transformer,
        "text_encoder": encoder,
        "tokenizer": tokenizer,
        "vae": vae,
        "scheduler": FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
    }
    settings = {} if is_dev else {"is_distilled": flavour.endswith("-distilled")}
    write_pipeline_folder(folder, "Flux2Pipeline" if is_dev else "Flux2KleinPipeline", parts, **settings)
    return folder
