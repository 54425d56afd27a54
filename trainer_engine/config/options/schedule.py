from __future__ import annotations

from typing import Literal

from trainer_engine.config.option import OptionGroup, option


class ScheduleOptions(OptionGroup):
    """How the learning rate changes over the run. Every schedule begins with lr_warmup_steps of linear warm-up."""

    lr_scheduler: Literal["constant_with_warmup", "constant", "linear", "cosine", "cosine_with_restarts", "sine", "polynomial"] = option(
        "constant_with_warmup",
        "Curve of the learning rate after the warm-up. The decaying ones end at lr_end.",
        synonyms={"cosine_with_warmup": "cosine", "linear_with_warmup": "linear"},
    )
    lr_warmup_steps: int = option(0, "Optimizer steps of linear warm-up from 0 to learning_rate, before the curve begins.", ge=0)
    lr_end: float = option(4e-7, "Floor of the decaying curves.", ge=0, le=1)
    lr_num_cycles: int = option(1, "Cycles of cosine_with_restarts and of sine over the run.", ge=1)
    lr_power: float = option(0.8, "Exponent of the polynomial curve.", ge=0.1)
