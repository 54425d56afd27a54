"""A small Kandinsky 5 for images in the real Hugging Face layout, with random weights: for tests."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, Kandinsky5Transformer3DModel
from torch import nn
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from trainer_engine.families.kandinsky5_image.spec import EDITS
from trainer_engine.tiny_models.autoencoders import build_vae
from trainer_engine.tiny_models.chat import TEXT_WIDTH, VISION_MARKS, build_chat_tokenizer, build_qwen25_vl
from trainer_engine.tiny_models.hub_cache import write_pipeline_folder
from trainer_engine.tiny_models.stable_diffusion import tiny_clip_text
from trainer_engine.tiny_models.text import build_clip_tokenizer

SHIFT = 3.0
SHIFT_FACTOR = 0.1159
SPREAD, NORM_SPREAD = 0.2, 0.2


def make_tiny(folder: Path, *, flavour: str = "t2i-lite-sft", seed: int = 0) -> Path:
    """Write the pipeline of a flavour into ``folder`` and return it. The global random state is left alone.

    The same seed gives the same bytes.
    """
    kind = "Kandinsky5I2IPipeline" if flavour in EDITS else "Kandinsky5T2IPipeline"
    tokenizer, clip_tokenizer = build_chat_tokenizer(*VISION_MARKS), build_clip_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        parts = {
            "transformer": _transformer(edits=flavour in EDITS),
            "text_encoder": build_qwen25_vl(tokenizer),
            "tokenizer": tokenizer,
            "text_encoder_2": tiny_clip_text(clip_tokenizer),
            "tokenizer_2": clip_tokenizer,
            "vae": build_vae(16, shift=SHIFT_FACTOR, quant_convs=False),
            "scheduler": FlowMatchEulerDiscreteScheduler(shift=SHIFT),
        }
    write_pipeline_folder(folder, kind, parts, tokenizer=["transformers", "Qwen2VLProcessor"])
    Qwen2VLImageProcessorPil(min_pixels=16, max_pixels=24 * 24, patch_size=2, merge_size=2).save_pretrained(folder / "tokenizer")
    return folder


def _transformer(*, edits: bool) -> Kandinsky5Transformer3DModel:
    """With modulations and norms that are not neutral, which would hide what they are applied to."""
    network = Kandinsky5Transformer3DModel(
        in_visual_dim=16,
        out_visual_dim=16,
        in_text_dim=TEXT_WIDTH,
        in_text_dim2=TEXT_WIDTH,
        time_dim=24,
        model_dim=32,
        ff_dim=48,
        num_text_blocks=2,
        num_visual_blocks=2,
        axes_dims=(4, 6, 6),
        visual_cond=edits,
    )
    for name, parameter in network.named_parameters():
        if "modulation" in name:
            nn.init.normal_(parameter, std=SPREAD)
        elif name.endswith("norm.weight"):
            nn.init.normal_(parameter, mean=1, std=NORM_SPREAD)
    return network
