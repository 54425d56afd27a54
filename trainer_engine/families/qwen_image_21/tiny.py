"""A small Qwen-Image 2.1 in the real Hugging Face layout, with random weights: for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLQwenImage21, FlowMatchEulerDiscreteScheduler, QwenImage21Transformer2DModel
from torch import nn
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from trainer_engine.families.qwen_image_21.spec import DISTILLED, TURBO_SIGMAS
from trainer_engine.tiny_models.chat import TEXT_WIDTH, VISION_MARKS, build_chat_tokenizer, build_qwen3_vl
from trainer_engine.tiny_models.hub_cache import write_pipeline_folder

SCHEDULE = {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 0.9, "max_image_seq_len": 8192, "shift_terminal": 0.02}
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% for part in message.content %}{{ part.text }}{% endfor %}<|im_end|>\n{% endfor %}"
)
"""Contents in parts, as the template of Qwen3-VL has them."""
NORM_SCALE = 0.3
PATCH_PX = 16
"""As the real text encoder sees images: two patches each way are a token of it, and four tokens of the network."""


def make_tiny(folder: Path, *, flavour: str = "v2.1", seed: int = 0) -> Path:
    """Write the pipeline of a flavour into ``folder`` and return it. The global random state is left alone.

    The same seed gives the same bytes.
    """
    tokenizer = build_chat_tokenizer(*VISION_MARKS)
    tokenizer.chat_template = TEMPLATE
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer = QwenImage21Transformer2DModel(
            num_layers=2, attention_head_dim=16, num_attention_heads=2, context_in_dim=TEXT_WIDTH, axes_dims_rope=(4, 6, 6)
        )
        encoder = build_qwen3_vl(tokenizer, patch_px=PATCH_PX)
        for name, parameter in (*transformer.named_parameters(), *encoder.named_parameters()):
            if "norm" in name and parameter.ndim == 1:  # scales that are alike would hide a norm
                nn.init.normal_(parameter, mean=parameter.mean().item(), std=NORM_SCALE)
        vae = AutoencoderKLQwenImage21(base_dim=4, decoder_base_dim=4, num_res_blocks=1)
    parts = {
        "transformer": transformer,
        "text_encoder": encoder,
        "vae": vae.eval(),
        "scheduler": FlowMatchEulerDiscreteScheduler(**SCHEDULE),
    }
    settings: dict[str, Any] = {"sample_sigmas": list(TURBO_SIGMAS)} if flavour in DISTILLED else {}
    write_pipeline_folder(folder, "QwenImage21Pipeline", parts, processor=["transformers", "Qwen3VLProcessor"], **settings)
    images = Qwen2VLImageProcessorPil(min_pixels=32 * 32, max_pixels=1024 * 1024, patch_size=PATCH_PX, merge_size=2)
    images.save_pretrained(folder / "processor")
    tokenizer.save_pretrained(folder / "processor")
    return folder
