from __future__ import annotations

from typing import Literal

from trainer_engine.contract.option import OptionGroup, option


class AdapterOptions(OptionGroup):
    """What is trained beside frozen weights where model_type is lora."""

    lora_type: Literal["standard", "lycoris"] = option(
        "standard", "Library of the adapter: standard is low-rank matrices through PEFT, lycoris is any algorithm of LyCORIS."
    )
