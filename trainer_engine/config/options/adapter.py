from __future__ import annotations

from typing import Literal

from trainer_engine.config.option import OptionGroup, option
from trainer_engine.contract.json_reading import read_document


class AdapterOptions(OptionGroup):
    """What is trained beside frozen weights where model_type is lora."""

    lora_type: Literal["standard", "lycoris"] = option(
        "standard", "Library of the adapter: standard is low-rank matrices through PEFT, lycoris is any algorithm of LyCORIS."
    )
    lora_rank: int = option(16, "Rank of a standard adapter. LyCORIS has linear_dim in its file instead.", ge=1, le=256)
    lora_alpha: float | None = option(None, "A standard adapter acts with the strength lora_alpha / lora_rank. Empty: 1.", ge=0.1)
    lora_dropout: float = option(0.1, "Share of the inputs that a standard adapter leaves out while it trains.", ge=0, le=1)
    lora_init_type: Literal["default", "gaussian"] = option(
        "default",
        "How a standard adapter begins; either way it does nothing at first.",
        later=("loftq", "olora", "pissa"),
    )
    use_dora: bool = option(False, "Train the norms of the adapted weights too (DoRA), standard adapters alone.")
    peft_lora_target_modules: str | None = option(
        None, 'Endings of the names of the modules that a standard adapter is put on, as JSON: ["to_q", "to_v"]. Empty: the family\'s own.'
    )
    lora_format: Literal["diffusers", "comfyui"] = option(
        "diffusers", "Keys of the result: diffusers is what the library that trained it loads, comfyui what ComfyUI loads."
    )
    init_lora: str | None = option(None, "An adapter file, or a folder that holds one, whose weights are the start.")
    lycoris_config: str = option("config/lycoris_config.json", "The adapter file of LyCORIS.")
    init_lokr_norm: float | None = option(
        None,
        "Standard deviation of the noise that LoKr starts with instead of doing nothing: 0.001. Without effect with init_lora.",
        ge=0,
    )


STANDARD_ALONE = ("lora_rank", "lora_alpha", "lora_dropout", "lora_init_type", "use_dora", "peft_lora_target_modules")
LYCORIS_ALONE = ("init_lokr_norm",)


def parse_targets(text: str | None) -> tuple[str, ...] | None:
    """The list in ``peft_lora_target_modules``; None where it is empty. ValueError where it is no list of names."""
    if not text:
        return None
    try:
        names = read_document(text)
    except ValueError as error:
        raise ValueError(f"{text!r} is not JSON") from error
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
        raise ValueError(f"{text!r} is no list of names")
    return tuple(names)
