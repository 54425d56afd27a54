"""Options of adapters: the kind, its size, the layers that it is put on, and the weights that it starts from."""

from __future__ import annotations

from typing import Literal

from trainer_engine.config.option import OptionGroup, option
from trainer_engine.contract.files import read_document


class AdapterOptions(OptionGroup):
    """The adapter that is trained on the frozen base model when model_type is lora."""

    lora_type: Literal["standard", "lycoris"] = option(
        "standard", "Kind of adapter. standard: low-rank matrices (LoRA) through PEFT. lycoris: any algorithm of the LyCORIS library."
    )
    lora_rank: int = option(16, "Rank of a standard adapter. LyCORIS reads linear_dim from lycoris_config instead.", ge=1, le=256)
    lora_alpha: float | None = option(
        None, "Scale of a standard adapter: its output is multiplied by lora_alpha / lora_rank. Empty: the same as lora_rank.", ge=0.1
    )
    lora_dropout: float = option(0.1, "Dropout of a standard adapter: the share of its inputs that is zeroed in training.", ge=0, le=1)
    lora_init_type: Literal["default", "gaussian"] = option(
        "default",
        "Initialization of a standard adapter's first matrix. default: Kaiming uniform. gaussian: normal noise. The second matrix is zero "
        "with both, so the adapter changes nothing at the start.",
        later=("loftq", "olora", "pissa"),
    )
    use_dora: bool = option(False, "Also train the norms of the adapted weights (DoRA). Only for standard adapters.")
    peft_lora_target_modules: str | None = option(
        None,
        'Layers of the network that get a standard adapter: a JSON list of module-name endings, such as ["to_q", "to_v"]. '
        "Empty: the default layers of the family.",
    )
    unet_lora_target: Literal["attention", "attention+ffs", "attention+convs", "all"] = option(
        "attention",
        "Layers of a UNet that get a standard adapter. attention: the projections of attention. +ffs: the feed-forward layers too. +convs: "
        "the convolutions of residual blocks and of changes of resolution too. all: both, and the projections around the transformers.",
    )
    flux_lora_target: Literal[
        "mmdit",
        "context",
        "context+ffs",
        "all",
        "all+ffs",
        "ai-toolkit",
        "tiny",
        "nano",
        "all+ffs+embedder",
        "controlnet",
        "all+ffs+embedder+controlnet",
    ] = option(
        "all",
        "Layers of the transformer of Flux.1 or Chroma that get a standard adapter. all: attention of images and prompts; mmdit: the same "
        "and the outputs of single blocks; context: attention of prompts; +ffs: feed-forward layers too; +embedder: the image embedder "
        "too; ai-toolkit: every linear layer of the blocks; tiny and nano: the output of two single blocks, or of one; controlnet: the "
        "layers that only a ControlNet has, alone with attention.",
    )
    slider_lora_target: bool = option(
        False,
        "Put a standard adapter on the layers that sliders train: self-attention, input and output projections and the embedding of time, "
        "but nothing that reads the prompt. Instead of the layers that another option of the family chooses.",
    )
    lora_format: Literal["diffusers", "comfyui"] = option(
        "diffusers",
        "Key names in the saved adapter. diffusers: the names that the library that trained it loads. comfyui: the names that ComfyUI "
        "loads.",
    )
    init_lora: str | None = option(
        None, "Adapter whose weights training starts from: a .safetensors file, or a folder that holds one. Empty: a new adapter."
    )
    init_lora_step: int | None = option(
        None,
        "Optimizer step from which a run counts on that begins with init_lora: schedules, intervals and the order of samples go on from "
        "there. Empty: 0. A run that resumes goes on from its checkpoint.",
        ge=0,
    )
    init_lora_ema: str | None = option(
        None,
        "Adapter that the average of use_ema starts from: the average of the run that init_lora is of. A .safetensors file, or a folder "
        "that holds one. Empty: init_lora.",
    )
    assistant_lora_path: str | None = option(
        None,
        "Frozen adapter that is active while another one is trained, so that distilled base weights can be trained: a .safetensors file, a "
        "folder that holds pytorch_lora_weights.safetensors, or owner/name:file on the hub. Results do not contain it.",
    )
    assistant_lora_strength: float = option(1.0, "Strength of assistant_lora_path in training and in evaluations.", ge=-10, le=10)
    assistant_lora_inference_strength: float = option(
        0.0, "Strength of assistant_lora_path in validation images. 0: they are made without it.", ge=-10, le=10
    )
    disable_assistant_lora: bool = option(False, "Train without assistant_lora_path, also where it is a default of the flavour.")
    lycoris_config: str = option("config/lycoris_config.json", "Path of the LyCORIS configuration file, for lora_type=lycoris.")
    init_lokr_norm: float | None = option(
        None,
        "Fill the zero factor of LoKr with noise of this standard deviation, such as 0.001, at the start. Ignored when init_lora is set.",
        ge=0,
    )


STANDARD_ALONE = (
    *("lora_rank", "lora_alpha", "lora_dropout", "lora_init_type", "use_dora"),
    *("peft_lora_target_modules", "unet_lora_target", "flux_lora_target", "slider_lora_target"),
)
"""Options that only a standard adapter reads."""
LYCORIS_ALONE = ("init_lokr_norm",)
"""Options that only a LyCORIS adapter reads."""


def parse_targets(text: str | None) -> tuple[str, ...] | None:
    """Returns the names listed in ``peft_lora_target_modules``, or None if it is empty. Raises ValueError if it is not a list of names."""
    if not text:
        return None
    try:
        names = read_document(text)
    except ValueError as error:
        raise ValueError(f"{text!r} is not JSON") from error
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
        raise ValueError(f"{text!r} is not a list of names")
    return tuple(names)
