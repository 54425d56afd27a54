"""A small Anima in the real Hugging Face layout, with random weights: for tests."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AnimaTextConditioner, AutoencoderKLQwenImage, CosmosTransformer3DModel, FlowMatchEulerDiscreteScheduler

from trainer_engine.families.anima.spec import CONDITIONER, T5_TOKENIZER
from trainer_engine.tiny_models.chat import TEXT_WIDTH, build_chat_tokenizer, build_qwen3
from trainer_engine.tiny_models.hub_cache import write_pipeline_folder
from trainer_engine.tiny_models.text import build_t5_tokenizer


def make_tiny(folder: Path, *, seed: int = 0) -> Path:
    """Write the pipeline into ``folder`` and return it. The global random state is left alone. The same seed gives the same bytes."""
    tokenizer, t5_tokenizer = build_chat_tokenizer(), build_t5_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer = CosmosTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=18,
            num_layers=2,
            text_embed_dim=TEXT_WIDTH,
            adaln_lora_dim=8,
            rope_scale=(1.0, 4.0, 4.0),
            extra_pos_embed_type=None,
        )
        conditioner = AnimaTextConditioner(
            source_dim=TEXT_WIDTH,
            target_dim=TEXT_WIDTH,
            model_dim=TEXT_WIDTH,
            num_layers=2,
            num_attention_heads=2,
            target_vocab_size=len(t5_tokenizer),
        )
        encoder = build_qwen3(len(tokenizer), layers=2).model
        vae = AutoencoderKLQwenImage(base_dim=4, num_res_blocks=1)
    parts = {
        "transformer": transformer,
        CONDITIONER: conditioner,
        "text_encoder": encoder,
        "tokenizer": tokenizer,
        T5_TOKENIZER: t5_tokenizer,
        "vae": vae.eval(),
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0),
    }
    write_pipeline_folder(folder, "AnimaModularPipeline", parts)
    return folder
