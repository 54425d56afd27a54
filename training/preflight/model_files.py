"""Checks that the model folders of a run hold no unsafe files, with the code that the engine uses."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from trainer_engine.config.families import FamilySpec, tokenizer_of
from trainer_engine.config.model_files import unsafe_files
from trainer_engine.config.options import TrainingOptions
from trainer_engine.contract.errors import Problem
from training.preflight import base_model

BASE, VAE, T5 = "pretrained_model_name_or_path", "pretrained_vae_model_name_or_path", "pretrained_t5_model_name_or_path"


def model_problems(options: TrainingOptions, spec: FamilySpec, hub: base_model.HubSettings) -> Iterator[Problem]:
    """Check local models. The engine checks the others after the download."""
    model = options.model
    encoder = spec.prompts.text_encoder_folders[-1]
    replaced = {VAE: ["vae"], T5: [encoder, tokenizer_of(encoder)]}
    base_parts = [
        *(component.folder for component in spec.trained.values()),
        "vae",
        "scheduler",
        *(name for one in spec.prompts.text_encoder_folders for name in (one, tokenizer_of(one))),
    ]
    for option, parts in replaced.items():
        source = getattr(model, option)
        if source:
            base_parts = [name for name in base_parts if name not in parts]
            names = [name.removesuffix("_2") for name in parts]
            yield from _source_problems(option, source, None, names, hub)
    base_parts = list(dict.fromkeys(base_parts))  # a trained text encoder is in it twice
    base = model.pretrained_model_name_or_path or spec.repository(model.model_flavour)
    yield from _source_problems(BASE, base, model.revision, base_parts, hub)


def _source_problems(option: str, source: str, revision: str | None, parts: list[str], hub: base_model.HubSettings) -> Iterator[Problem]:
    root = base_model.find_weights(source, revision, hub)
    if root is None:
        return
    there = [root / name for name in parts if (root / name).is_dir()]
    for folder in there or [root]:
        yield from folder_problems(option, source, folder)


def folder_problems(option: str, source: str, folder: Path) -> Iterator[Problem]:
    """At most one problem per folder: the first one, with which the engine would stop."""
    found = next(unsafe_files(folder), None)
    if found is not None:
        message = f"The part {folder.name} of {source} is not loaded: {found}."
        yield Problem.error(option, "unsafe_model", message, got=source, expected="weights in safetensors", hint=found.hint)
