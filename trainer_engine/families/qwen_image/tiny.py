"""A small Qwen-Image in the real Hugging Face layout, with random weights: for tests."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKLQwenImage, FlowMatchEulerDiscreteScheduler, QwenImageTransformer2DModel
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from trainer_engine.tiny_models.chat import TEXT_WIDTH, VISION_MARKS, build_chat_tokenizer, build_qwen25_vl
from trainer_engine.tiny_models.hub_cache import write_pipeline_folder

SCHEDULE = {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 0.9, "max_image_seq_len": 8192, "shift_terminal": 0.02}


def make_tiny(folder: Path, *, flavour: str = "v2.0", seed: int = 0) -> Path:
    """Write the pipeline of a flavour into ``folder`` and return it. The global random state is left alone.

    The same seed gives the same bytes. The image processor of a flavour that edits makes few patches of every image.
    """
    tokenizer = build_chat_tokenizer(*VISION_MARKS)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer = QwenImageTransformer2DModel(
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=TEXT_WIDTH,
            axes_dims_rope=(4, 6, 6),
            zero_cond_t=flavour == "edit-v3",
        )
        encoder = build_qwen25_vl(tokenizer)
        vae = AutoencoderKLQwenImage(base_dim=4, num_res_blocks=1)
    parts = {
        "transformer": transformer,
        "text_encoder": encoder,
        "tokenizer": tokenizer,
        "vae": vae.eval(),
        "scheduler": FlowMatchEulerDiscreteScheduler(**SCHEDULE),
    }
    kinds = {"edit-v1": "QwenImageEditPipeline", "edit-v2": "QwenImageEditPlusPipeline", "edit-v3": "QwenImageEditPlusPipeline"}
    seeing = {"processor": ["transformers", "Qwen2VLProcessor"]} if flavour in kinds else {}
    write_pipeline_folder(folder, kinds.get(flavour, "QwenImagePipeline"), parts, **seeing)
    if seeing:
        Qwen2VLImageProcessorPil(min_pixels=16, max_pixels=24 * 24, patch_size=2, merge_size=2).save_pretrained(folder / "processor")
        tokenizer.save_pretrained(folder / "processor")
    return folder
