"""Small Stable Diffusion pipelines in the real Hugging Face layout, with random UNets and text encoders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from trainer_engine.tiny_models.autoencoders import build_vae
from trainer_engine.tiny_models.hub_cache import write_pipeline_folder
from trainer_engine.tiny_models.text import CLIP_TOKENS, build_clip_tokenizer

TEXT_WIDTH = 32


def tiny_unet(*, text_width: int = TEXT_WIDTH, **changes: Any) -> UNet2DConditionModel:
    """Two resolutions, one residual block and one transformer block at each: some 100 thousand parameters."""
    usual = {
        "sample_size": 32,
        "in_channels": 4,
        "out_channels": 4,
        "layers_per_block": 1,
        "block_out_channels": (16, 32),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "norm_num_groups": 8,
        "attention_head_dim": 4,
        "cross_attention_dim": text_width,
    }
    return UNet2DConditionModel(**{**usual, **changes})


def tiny_clip_text(tokenizer: CLIPTokenizer, *, projection: int = 0, layers: int = 3) -> CLIPTextModel | CLIPTextModelWithProjection:
    """A CLIP text encoder of width 32; with a projection of that width if ``projection`` is not 0."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=2 * TEXT_WIDTH,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=CLIP_TOKENS,
        projection_dim=projection or TEXT_WIDTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModelWithProjection(config) if projection else CLIPTextModel(config)


def make_tiny_stable_diffusion(folder: Path, *, seed: int = 0, prediction_type: str = "epsilon", linear_projections: bool = False) -> Path:
    """Write a pipeline of Stable Diffusion 1 or 2 into ``folder`` and return it. The same seed gives the same bytes.

    The global random state is left alone.
    """
    tokenizer = build_clip_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet, text_encoder, vae = tiny_unet(use_linear_projection=linear_projections), tiny_clip_text(tokenizer), build_vae()
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction_type,
    )
    parts = {"unet": unet, "text_encoder": text_encoder, "tokenizer": tokenizer, "vae": vae, "scheduler": scheduler}
    write_pipeline_folder(folder, "StableDiffusionPipeline", parts, safety_checker=None, feature_extractor=None)
    return folder
