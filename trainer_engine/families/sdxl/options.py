"""Options of the Stable Diffusion XL family, and the rules between them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from trainer_engine.config.family_parts import FULL_PIPELINE as FULL
from trainer_engine.config.option import OptionGroup, option
from trainer_engine.config.prompt_library import names_prompts
from trainer_engine.contract.errors import Problem
from trainer_engine.families.sdxl.spec import REFINERS

SCORE = "data_aesthetic_score"
MODE = "sdxl_validation_pipeline_mode"
FULL_RANGE = "sdxl_refiner_uses_full_range"


class SdxlOptions(OptionGroup):
    """Options of Stable Diffusion XL alone."""

    data_aesthetic_score: float = option(
        7.0,
        "Flavours refiner-1.0 and refiner-0.9: the aesthetic score that every image is trained with, and that validation images ask for. "
        "The refiner was trained on images with scores from 0 to 10.",
        ge=0,
        le=10,
    )
    sdxl_refiner_uses_full_range: bool = option(
        False,
        "Flavours refiner-1.0 and refiner-0.9: train on the whole noise schedule, to make a model of its own of the refiner, whatever "
        "refiner_training says. Without it they are trained as they were made, since refiner_training is on for them.",
    )
    sdxl_validation_pipeline_mode: Literal["trained-stage", "full-pipeline"] = option(
        "trained-stage",
        "Which networks make validation images. trained-stage: the trained one alone. full-pipeline: the base and the refiner, or the two "
        "networks of refiner_training. Stage 1 hands over to stage 2 where refiner_training_strength of the noise schedule is left.",
    )
    sdxl_validation_stage1_model: str | None = option(
        None,
        "With full-pipeline, in a run that trains the refiner or another stage 2: the base model, a repository or a folder in the layout "
        "of diffusers. Empty: the base of the same version.",
    )
    sdxl_validation_stage2_model: str | None = option(
        None,
        "With full-pipeline, in a run that trains the base or another stage 1: the refiner, a repository or a folder in the layout of "
        "diffusers. Empty: the refiner of the same version.",
    )


def refiner_options_make_sense(values: Mapping[str, Any]) -> Iterator[Problem]:
    """A score that is not used, trained text encoders, and what the validation images of a refiner show."""
    is_refiner = values.get("model_flavour") in REFINERS
    if not is_refiner and values[SCORE] != SdxlOptions.model_fields[SCORE].default:
        message = f"Only the refiner is given an aesthetic score: {SCORE} has no effect."
        yield Problem.note(SCORE, "no_effect", message, got=values[SCORE], expected=f"model_flavour={max(REFINERS)}")
    if values[FULL_RANGE] and not is_refiner:
        message = f"Only the refiner is trained on a part of the schedule without it: {FULL_RANGE} has no effect."
        yield Problem.note(FULL_RANGE, "no_effect", message, got=True, expected=f"model_flavour={max(REFINERS)}")
    if is_refiner and values["train_text_encoder"]:
        message = "The text encoder of a refiner is not trained: only that of the base is."
        yield Problem.error("train_text_encoder", "not_for_flavour", message, got=True, expected="False, or a base flavour")
    if is_refiner and values[MODE] != FULL and not values["validation_disable"] and names_prompts(values):
        message = (
            "Validation images of a refiner begin with noise, from which it was not trained to start: they show what changes, not how "
            "well it refines the images of another model."
        )
        yield Problem.note(
            "validation_disable", "begins_with_noise", message, got=False, hint=f"set {MODE}={FULL} to begin with the base model"
        )


GROUP = SdxlOptions
RULES = (refiner_options_make_sense,)
