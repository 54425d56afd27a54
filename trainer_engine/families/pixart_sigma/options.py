"""Options of the PixArt Sigma family: the second network of validation images."""

from __future__ import annotations

from typing import Literal

from trainer_engine.config.option import OptionGroup, option


class PixArtOptions(OptionGroup):
    """Options of PixArt Sigma alone."""

    pixart_validation_pipeline_mode: Literal["trained-stage", "full-pipeline"] = option(
        "trained-stage",
        "Validation images of a run that trains one of two networks which share the noise schedule (refiner_training, or the flavours "
        "900M-1024-v0.7-stage1 and -stage2). trained-stage: by this network alone. full-pipeline: by both; stage 1 hands over to stage 2 "
        "where refiner_training_strength of the schedule is left.",
    )
    pixart_validation_stage1_model: str | None = option(
        None,
        "With full-pipeline, in a run that trains stage 2: the network of stage 1, a repository or a folder in the layout of diffusers. "
        "Empty: the flavour 900M-1024-v0.7-stage1.",
    )
    pixart_validation_stage2_model: str | None = option(
        None,
        "With full-pipeline, in a run that trains stage 1: the network of stage 2, a repository or a folder in the layout of diffusers. "
        "Empty: the flavour 900M-1024-v0.7-stage2.",
    )


GROUP = PixArtOptions
RULES = ()
