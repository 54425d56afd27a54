"""What the proofs of adapters need to know of a family, and what several families state alike.

The folder of tests of each family has a module ``network`` with its ``ADAPTERS``; ``trained_adapters`` beside this file finds them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

Draw = Callable[..., Tensor]
"""(\\*shape) -> normal numbers, the same in every run."""
JOINED = r"attn2?\.(to_[qkv]|add_[qkv]_proj|to_out\.0|to_add_out)"
"""Layers of attention to the tokens of an image and of a prompt together."""
EMBEDDERS = r"time_text_embed\.(timestep|text|guidance)_embedder\.linear_[12]"
UNET_KEYS = r"""lora_unet_(
    (down_blocks_\d+|mid_block|up_blocks_\d+)_(
        resnets_\d+_(conv1|conv2|conv_shortcut|time_emb_proj)
        |attentions_\d+_(proj_in|proj_out|transformer_blocks_\d+_(attn[12]_(to_[qkv]|to_out_0)|ff_net_(0_proj|2)))
        |downsamplers_0_conv|upsamplers_0_conv)
    |conv_in|conv_out|time_embedding_linear_[12]|add_embedding_linear_[12])"""
SIGMAS = (0.3, 0.7)
"""Noise levels of the two samples."""
TIMES = (300.0, 700.0)
"""The same, counted to 1000."""


@dataclass(frozen=True, kw_only=True)
class AdapterFacts:
    """How the family's micro network is called, and what other programs read of adapters on its network."""

    output: Callable[[Any, Tensor, Draw], Tensor]
    """(network, states of two prompts (2, 77, ``prompt_width``), draw) -> its output for fixed inputs."""
    comfyui: str
    """The keys of modules that ComfyUI loads, as a verbose regular expression."""
    not_loaded: str = ""
    """Layers that ComfyUI finds by none of these keys, as a regular expression. No target of an adapter is one of them."""
    prompt_width: int = 32
    open_pipeline: Callable[[Path], Any] | None = None
    """Opens the micro model as the pipeline of diffusers, if ``from_pretrained`` of its class alone cannot."""
    loads_in_diffusers: bool = True
    """Whether the pipeline of diffusers reads adapters."""


def output_of_unet(network: Any, prompt: Tensor, draw: Draw) -> Tensor:
    """The output of a UNet that sees a prompt's states alone."""
    output: Tensor = network(draw(2, 4, 8, 8), torch.tensor([300, 700]), encoder_hidden_states=prompt, return_dict=False)[0]
    return output
