"""Checks whether the model that scores validation images is available, without loading it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from trainer_engine.config.options import TrainingOptions
from trainer_engine.config.options.evaluation import CLIP
from trainer_engine.contract.errors import Problem
from trainer_engine.contract.files import is_folder, read_small_json
from training.preflight import base_model
from training.preflight.model_files import folder_problems

OPTION = "pretrained_evaluation_model_name_or_path"
WEIGHTS = ("*.safetensors",)
WEIGHT_FILES = ("model.safetensors", "model.safetensors.index.json")
"""Files of a repository with safetensors weights: the one file, or the index of several."""
PROCESSORS = ("processor_config.json", "preprocessor_config.json")
EXPECTED = "a CLIP model in safetensors, such as openai/clip-vit-large-patch14"


def scoring_problems(options: TrainingOptions, hub: base_model.HubSettings) -> Iterator[Problem]:
    if options.scoring.evaluation_type != CLIP or options.validation.validation_disable:
        return
    source = options.scoring.pretrained_evaluation_model_name_or_path
    folder = base_model.find_weights(source, None, hub)
    if folder is None:
        found = base_model.check_access(OPTION, source, None, hub) or _without_safetensors(source, hub)
        yield from [found] if found else []
    elif not is_folder(folder):
        yield Problem.error(OPTION, "not_found", f"There is no folder {source}.", got=source, expected=EXPECTED)
    elif (kind := _model_type(folder)) != CLIP:
        says = f"its config.json says model_type {kind!r}" if kind else "it has no config.json that says so"
        yield Problem.error(OPTION, "not_a_clip_model", f"{source} is not a CLIP model: {says}.", got=source, expected=EXPECTED)
    elif unsafe := list(folder_problems(OPTION, source, folder)):
        yield from unsafe
    elif Path(source).is_absolute():  # missing files of a repository are downloaded
        yield from _missing_files(folder, source)


def _without_safetensors(source: str, hub: base_model.HubSettings) -> Problem | None:
    """A problem if the repository has no weights in safetensors."""
    answers = [base_model.check_file(OPTION, source, file, hub) for file in WEIGHT_FILES]
    if not all(answer is not None and answer.code == "not_found" for answer in answers):
        return None
    message = f"The repository {source} holds no weights in safetensors, and no others are loaded."
    return Problem.error(OPTION, "unsafe_model", message, got=source, expected=EXPECTED, hint="convert a copy of it, or name another model")


def _model_type(folder: Path) -> str:
    try:
        found = read_small_json(folder / "config.json")
    except OSError:
        return ""
    return str(found.get("model_type", "")) if isinstance(found, dict) else ""


def _missing_files(folder: Path, source: str) -> Iterator[Problem]:
    for what, patterns in (("weights", WEIGHTS), ("image processor", PROCESSORS)):
        if not any(any(folder.glob(pattern)) for pattern in patterns):
            message = f"{folder} has no {what}: there is nothing like {' or '.join(patterns)}."
            yield Problem.error(OPTION, "incomplete_model", message, got=source, expected=EXPECTED)
