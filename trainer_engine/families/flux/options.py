from __future__ import annotations

from typing import Literal

from trainer_engine.contract.option import OptionGroup, option

LoraTarget = Literal["mmdit", "context", "context+ffs", "all", "all+ffs", "ai-toolkit", "tiny", "nano", "all+ffs+embedder"]


class FluxOptions(OptionGroup):
    """What only Flux.1 knows."""

    flux_guidance_value: float = option(
        1.0, "Guidance that the network is told while it trains; 1 is none. Without effect on schnell, which knows no guidance.", ge=0
    )
    flux_guidance_mode: Literal["constant", "random-range"] = option(
        "constant", "Tell every sample flux_guidance_value, or a value drawn between flux_guidance_min and flux_guidance_max."
    )
    flux_guidance_min: float = option(0.0, "Lowest value of random-range.", ge=0)
    flux_guidance_max: float = option(4.0, "Highest value of random-range.", ge=0)
    flux_attention_masked_training: bool = option(
        False, "Keep the network from attending to the padding of prompts, while training and in validation images. It was trained with it."
    )
    flux_lora_target: LoraTarget = option(
        "all",
        "Layers of a standard adapter. all: attention of images and prompts; mmdit: the same and the outputs of single blocks; context: "
        "attention of prompts; +ffs: feed-forward layers too; +embedder: the image embedder too; ai-toolkit: every linear layer of the "
        "blocks; tiny and nano: the output of two single blocks, or of one.",
        later=("controlnet", "all+ffs+embedder+controlnet"),
    )


GROUP = FluxOptions
