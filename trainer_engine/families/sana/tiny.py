"""A small Sana in the real Hugging Face layout, with random weights: for tests."""

from __future__ import annotations

import string
from pathlib import Path

import torch
from diffusers import AutoencoderDC, DPMSolverMultistepScheduler, SanaTransformer2DModel

from trainer_engine.families.sana.prompts import published_instruction
from trainer_engine.tiny_models.gemma import TEXT_WIDTH, build_gemma2, build_gemma_tokenizer
from trainer_engine.tiny_models.hub_cache import write_pipeline_folder
from trainer_engine.tiny_models.text import WORDS

DEPTH = 6
"""Levels of the autoencoder, each of which but the first halves the image."""
KINDS = ("ResBlock",) * (DEPTH - 1) + ("EfficientViTBlock",)


def build_deep_vae() -> AutoencoderDC:
    """An autoencoder of 32 x 32 pixels a cell, with random weights and the layers of the published one."""
    channels = (4, 8, 8, 16, 16, 32)
    vae = AutoencoderDC(
        attention_head_dim=8,
        encoder_block_types=KINDS,
        decoder_block_types=KINDS,
        encoder_block_out_channels=channels,
        decoder_block_out_channels=channels,
        encoder_layers_per_block=(1,) * DEPTH,
        decoder_layers_per_block=(1,) * DEPTH,
        encoder_qkv_multiscales=((),) * (DEPTH - 1) + ((5,),),
        decoder_qkv_multiscales=((),) * (DEPTH - 1) + ((5,),),
        upsample_block_type="interpolate",
        downsample_block_type="Conv",
        scaling_factor=0.41407,
    )
    return vae.eval()


def make_tiny(folder: Path, *, seed: int = 0) -> Path:
    """Write the pipeline into ``folder`` and return it. The same seed gives the same bytes. The global random state is left alone."""
    tokenizer = build_gemma_tokenizer((*published_instruction().split(), *WORDS.split(), *string.ascii_lowercase))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer = SanaTransformer2DModel(
            num_attention_heads=4,
            attention_head_dim=8,
            num_layers=2,
            num_cross_attention_heads=2,
            cross_attention_head_dim=16,
            cross_attention_dim=32,
            caption_channels=TEXT_WIDTH,
            sample_size=4,
            qk_norm="rms_norm_across_heads",
            timestep_scale=0.5,  # that of the published ones is 1, which would hide it
        )
        encoder = build_gemma2(len(tokenizer), layers=2)
        vae = build_deep_vae()
    parts = {
        "transformer": transformer,
        "text_encoder": encoder,
        "tokenizer": tokenizer,
        "vae": vae,
        "scheduler": DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
    }
    write_pipeline_folder(folder, "SanaPipeline", parts)
    return folder
