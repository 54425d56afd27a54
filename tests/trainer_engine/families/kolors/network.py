"""The network of Kolors: its sizes and inputs, and what other programs read of adapters on it. It is that of SDXL with other prompts."""

from __future__ import annotations

from dataclasses import replace

from tests.bench.networks import DENOISING
from tests.trainer_engine.families.sdxl import network as sdxl
from trainer_engine.families.kolors.spec import SPEC

TOKENS = SPEC.prompts.token_limit
NETWORK = replace(
    sdxl.NETWORK,
    family=SPEC.name,
    title="Kolors",
    architecture={
        **sdxl.NETWORK.architecture,
        "encoder_hid_dim": 4096,
        "encoder_hid_dim_type": "text_proj",
        "projection_class_embeddings_input_dim": 5632,
    },
    others={},
    narrow={**sdxl.NETWORK.narrow, "encoder_hid_dim": 16},
    schedule={**DENOISING, "num_train_timesteps": 1100, "beta_end": 0.014},
    text=lambda architecture: {"embeds": (TOKENS, architecture["encoder_hid_dim"]), "pooled": (architecture["encoder_hid_dim"],)},
)
ADAPTERS = replace(sdxl.ADAPTERS, not_loaded=r"encoder_hid_proj", prompt_width=32)
"""The layer that makes prompts as wide as the UNet of SDXL takes them is not in that UNet in ComfyUI."""
