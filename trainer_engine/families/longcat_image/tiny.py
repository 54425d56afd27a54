"""A small LongCat-Image in the real Hugging Face layout, with random weights: for tests."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, LongCatImageTransformer2DModel
from torch import nn
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from trainer_engine.families.longcat_image.spec import EDIT, FINAL, PROCESSOR
from trainer_engine.tiny_models.autoencoders import build_vae
from trainer_engine.tiny_models.chat import TEXT_WIDTH, VISION_MARKS, build_chat_tokenizer, build_qwen25_vl
from trainer_engine.tiny_models.hub_cache import write_pipeline_folder

SHIFT_FACTOR = 0.1159
NORM_SPREAD = 0.2


def make_tiny(folder: Path, *, flavour: str = FINAL, seed: int = 0) -> Path:
    """Write the pipeline of a flavour into ``folder`` and return it. The global random state is left alone.

    The same seed gives the same bytes. The image processor makes few patches of every image.
    """
    tokenizer = build_chat_tokenizer(*VISION_MARKS)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer = LongCatImageTransformer2DModel(
            num_layers=2,
            num_single_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=TEXT_WIDTH,
            pooled_projection_dim=TEXT_WIDTH,
            axes_dims_rope=[4, 6, 6],
        )
        for name, parameter in transformer.named_parameters():
            if parameter.ndim == 1 and name.endswith(".weight"):  # ones would hide a norm of something else
                nn.init.normal_(parameter, mean=1, std=NORM_SPREAD)
        encoder = build_qwen25_vl(tokenizer)
        vae = build_vae(16, shift=SHIFT_FACTOR, quant_convs=False)
    parts = {
        "transformer": transformer,
        "text_encoder": encoder,
        "tokenizer": tokenizer,
        "vae": vae,
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
    }
    pipeline = "LongCatImageEditPipeline" if flavour == EDIT else "LongCatImagePipeline"
    write_pipeline_folder(folder, pipeline, parts, **{PROCESSOR: ["transformers", "Qwen2VLProcessor"]})
    Qwen2VLImageProcessorPil(min_pixels=16, max_pixels=24 * 24, patch_size=2, merge_size=2).save_pretrained(folder / PROCESSOR)
    tokenizer.save_pretrained(folder / PROCESSOR)
    return folder
