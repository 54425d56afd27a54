"""A small Krea 2 in the real Hugging Face layout, with random weights: for tests."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKLQwenImage, FlowMatchEulerDiscreteScheduler, Krea2Transformer2DModel
from torch import nn

from trainer_engine.tiny_models.chat import TEXT_WIDTH, VISION_MARKS, build_chat_tokenizer, build_qwen3_vl
from trainer_engine.tiny_models.hub_cache import write_pipeline_folder

SCHEDULE = {
    "use_dynamic_shifting": True,
    "base_shift": 0.5,
    "max_shift": 1.15,
    "base_image_seq_len": 256,
    "max_image_seq_len": 6400,
    "time_shift_type": "exponential",
}
TEXT_LAYERS = (1, 2, 3)
TABLE_SCALE = 0.2


def make_tiny(folder: Path, *, flavour: str = "raw", seed: int = 0) -> Path:
    """Write the pipeline of a flavour into ``folder`` and return it. The global random state is left alone.

    The same seed gives the same bytes.
    """
    tokenizer = build_chat_tokenizer(*VISION_MARKS, "assistant")  # the end of the conversation has five tokens, as in the real one
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer = Krea2Transformer2DModel(
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=96,
            timestep_embed_dim=16,
            text_hidden_dim=TEXT_WIDTH,
            num_text_layers=len(TEXT_LAYERS),
            text_num_attention_heads=2,
            text_num_key_value_heads=2,
            text_intermediate_size=48,
            axes_dims_rope=(4, 6, 6),
        )
        for name, parameter in transformer.named_parameters():  # zeros would hide what is modulated and scaled
            if "norm" in name or "scale_shift_table" in name:
                nn.init.normal_(parameter, std=TABLE_SCALE)
        encoder = build_qwen3_vl(tokenizer, layers=4).model
        vae = AutoencoderKLQwenImage(base_dim=4, num_res_blocks=1)
    parts = {
        "transformer": transformer,
        "text_encoder": encoder,
        "tokenizer": tokenizer,
        "vae": vae.eval(),
        "scheduler": FlowMatchEulerDiscreteScheduler(**SCHEDULE),
    }
    settings = {"text_encoder_select_layers": list(TEXT_LAYERS), "is_distilled": flavour == "turbo", "patch_size": 2}
    write_pipeline_folder(folder, "Krea2Pipeline", parts, **settings)
    return folder
