from __future__ import annotations

from typing import Literal

from trainer_engine.config.option import OptionGroup, option

CLIP = "clip"


class ScoringOptions(OptionGroup):
    """How well validation images show what their prompts say: docs/evaluation.md, "CLIP scores"."""

    evaluation_type: Literal["none", "clip"] = option(
        "none",
        "clip scores every finished validation image against its own prompt: 100 times the cosine between what a CLIP model makes of "
        "the two, 0 where it is negative.",
    )
    pretrained_evaluation_model_name_or_path: str = option(
        "openai/clip-vit-large-patch14-336",
        "CLIP model of evaluation_type=clip: a repository, or a folder with its config.json, weights and processor.",
    )
