from __future__ import annotations

from typing import Literal

from trainer_engine.contract.option import OptionGroup, option


class ReportingOptions(OptionGroup):
    """Who is told about the metrics besides the event log."""

    report_to: Literal["none"] = option(
        "none",
        "Tracker that the metrics are sent to as well.",
        later=("simpletuner", "tensorboard", "wandb", "swanlab", "comet_ml", "custom-tracker", "all"),
    )
