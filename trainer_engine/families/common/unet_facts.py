"""Torch-free facts that the specs of all UNet families share."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from trainer_engine.config.families import Component, Role

UNET = Component("unet", "unet.", Role.TRAINED, comfyui_prefix="lora_unet_")
"""ComfyUI and kohya's tools know the layers of these networks by the same flat keys."""
MODULE_CLASSES = (
    *("Attention", "FeedForward", "BasicTransformerBlock", "Transformer2DModel", "ResnetBlock2D"),
    *("Downsample2D", "Upsample2D", "TimestepEmbedding", "GEGLU", "Linear", "Conv2d"),
)
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
FEED_FORWARD = ("ff.net.0.proj", "ff.net.2")
CONVOLUTIONS = ("conv1", "conv2", "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv")
LORA_TARGETS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "attention": ATTENTION,
        "attention+ffs": (*ATTENTION, *FEED_FORWARD),
        "attention+ffs+conv": (*ATTENTION, *FEED_FORWARD, "proj_in", "proj_out", *CONVOLUTIONS),
    }
)
"""Sets of layers -> endings of module names. Convolutions of 3 x 3 are adapted too in the last."""
LYCORIS_START: Mapping[str, Any] = MappingProxyType(
    {
        "algo": "lokr",
        "multiplier": 1.0,
        "full_matrix": True,
        "linear_dim": 10000,
        "linear_alpha": 1,
        "factor": 8,
        "apply_preset": {"target_module": ["Attention"], "module_algo_map": {"Attention": {"factor": 8}}},
    }
)
"""Attention alone: LoKr of the feed-forward layers of these networks diverges easily."""
