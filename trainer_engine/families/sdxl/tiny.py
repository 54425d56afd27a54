"""A small Stable Diffusion XL in the real Hugging Face layout: for tests, and for a try on a laptop."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import EulerDiscreteScheduler

from trainer_engine.tiny_models.autoencoders import build_vae
from trainer_engine.tiny_models.hub_cache import write_pipeline_folder
from trainer_engine.tiny_models.stable_diffusion import TEXT_WIDTH, tiny_clip_text, tiny_unet
from trainer_engine.tiny_models.text import build_clip_tokenizer

SIZE_WIDTH = 8
"""Width of the sines that each time id is embedded with."""


def make_tiny(folder: Path, *, seed: int = 0, prediction_type: str = "epsilon", refiner: bool = False) -> Path:
    """Write the pipeline into ``folder`` and return it. The same seed gives the same bytes. The global random state is left alone.

    A ``refiner`` has five time ids in place of six, and one text encoder.
    """
    tokenizer = build_clip_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = tiny_unet(
            text_width=TEXT_WIDTH if refiner else 2 * TEXT_WIDTH,
            use_linear_projection=True,
            transformer_layers_per_block=(1, 2),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            addition_embed_type="text_time",
            addition_time_embed_dim=SIZE_WIDTH,
            projection_class_embeddings_input_dim=(5 if refiner else 6) * SIZE_WIDTH + TEXT_WIDTH,
        )
        clip, open_clip = tiny_clip_text(tokenizer), tiny_clip_text(tokenizer, projection=TEXT_WIDTH)
        vae = build_vae()
    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        steps_offset=1,
        timestep_spacing="leading",
        prediction_type=prediction_type,
    )
    parts = {
        "unet": unet,
        "text_encoder": clip,
        "text_encoder_2": open_clip,
        "tokenizer": tokenizer,
        "tokenizer_2": tokenizer,
        "vae": vae,
        "scheduler": scheduler,
    }
    if refiner:
        kept = {name: part for name, part in parts.items() if name not in ("text_encoder", "tokenizer")}
        settings = {"requires_aesthetics_score": True, "force_zeros_for_empty_prompt": False}
        write_pipeline_folder(folder, "StableDiffusionXLImg2ImgPipeline", kept, text_encoder=None, tokenizer=None, **settings)
    else:
        write_pipeline_folder(folder, "StableDiffusionXLPipeline", parts, force_zeros_for_empty_prompt=True)
    return folder
