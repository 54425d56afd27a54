"""What the options of scoring need in order to have an effect."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from trainer_engine.config.options.evaluation import CLIP
from trainer_engine.config.options.hooks import EXTERNAL
from trainer_engine.config.options.registry import REGISTRY
from trainer_engine.contract.errors import Problem

Values = Mapping[str, Any]
MODEL = "pretrained_evaluation_model_name_or_path"
BRINGING_PROMPTS = ("validation_prompt", "user_prompt_library")


def scoring_has_images(values: Values) -> Iterator[Problem]:
    kind, model = values["evaluation_type"], values[MODEL]
    if kind != CLIP:
        if model != REGISTRY[MODEL].default:
            yield Problem.note(MODEL, "no_effect", f"evaluation_type={kind} scores nothing: {MODEL} has no effect.", got=model)
    elif values["validation_disable"]:
        message = "validation_disable is set: there are no images to score, and evaluation_type has no effect."
        yield Problem.note("evaluation_type", "no_effect", message, got=kind)
    elif values["validation_method"] == EXTERNAL:
        message = f"validation_method={EXTERNAL}: the script's images are not seen here, so only those of the base model are scored."
        yield Problem.note("evaluation_type", "base_model_alone", message, got=kind)


def nothing_to_score(values: Values, *, captions: bool) -> Iterator[Problem]:
    """``captions``: whether datasets lend captions to the validation."""
    named = any(values[name] for name in BRINGING_PROMPTS) or values["validation_prompt_library"] != "false"
    if values["evaluation_type"] == CLIP and not values["validation_disable"] and not named and not captions:
        message = "No validation image has a prompt that it could be scored against."
        hint = "set validation_prompt, validation_prompt_library or user_prompt_library"
        yield Problem.note("evaluation_type", "nothing_to_score", message, got=CLIP, hint=hint)
