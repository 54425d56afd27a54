"""A small ERNIE-Image in the real Hugging Face layout, with random weights: for tests."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import ErnieImageTransformer2DModel, FlowMatchEulerDiscreteScheduler
from torch import nn

from trainer_engine.tiny_models.autoencoders import build_shuffled_vae
from trainer_engine.tiny_models.chat import TEXT_WIDTH, build_mistral3, build_mistral_tokenizer
from trainer_engine.tiny_models.hub_cache import write_pipeline_folder

SHIFT = 4.0
SPREAD, NORM_SPREAD = 0.1, 0.2


def make_tiny(folder: Path, *, seed: int = 0) -> Path:
    """Write the pipeline into ``folder`` and return it. The same seed gives the same bytes. The global random state is left alone.

    The variances of the latents are so small that what is added to them shows.
    """
    tokenizer = build_mistral_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer = ErnieImageTransformer2DModel(
            hidden_size=48, num_attention_heads=3, num_layers=2, ffn_hidden_size=64, text_in_dim=TEXT_WIDTH, rope_axes_dim=(4, 6, 6)
        )
        for layer in (transformer.adaLN_modulation[-1], transformer.final_linear):  # zeros would hide every block
            nn.init.normal_(layer.weight, std=SPREAD)
            nn.init.normal_(layer.bias, std=SPREAD)
        for name, parameter in transformer.named_parameters():
            if parameter.ndim == 1 and name.endswith(".weight"):  # ones would hide a norm of something else
                nn.init.normal_(parameter, mean=1, std=NORM_SPREAD)
        encoder = build_mistral3(len(tokenizer), language="ministral3").model
        vae = build_shuffled_vae()
        vae.bn.running_var.uniform_(0.001, 0.01)
    parts = {
        "transformer": transformer,
        "text_encoder": encoder,
        "tokenizer": tokenizer,
        "vae": vae,
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=SHIFT),
    }
    write_pipeline_folder(folder, "ErnieImagePipeline", parts)
    return folder
