"""The network of Stable Diffusion 1: its sizes and inputs, how diffusers calls it, and what other programs read of adapters on it."""

from __future__ import annotations

from diffusers import UNet2DConditionModel

from tests.bench.networks import DENOISING, WIDE_UNET, Network, call_unet
from tests.trainer_engine.families.adapter_facts import UNET_KEYS, AdapterFacts, output_of_unet
from trainer_engine.families.sd1x.spec import SPEC

TOKENS = SPEC.prompts.token_limit
NETWORK = Network(
    family=SPEC.name,
    title="Stable Diffusion 1",
    make=UNet2DConditionModel,
    architecture={"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8},
    narrow={"block_out_channels": (8, 16, 32, 32), "norm_num_groups": 4, "cross_attention_dim": 16, "attention_head_dim": 2},
    shallow={"layers_per_block": 1},
    deeper={"layers_per_block": 2},
    wider=WIDE_UNET,
    schedule=DENOISING,
    text=lambda architecture: {"embeds": (TOKENS, architecture["cross_attention_dim"])},
    call=call_unet,
)
ADAPTERS = AdapterFacts(output=output_of_unet, comfyui=UNET_KEYS)
