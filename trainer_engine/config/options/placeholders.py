"""The placeholders of hook commands and their values."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from typing import Any

from trainer_engine.config.options.registry import ALIASES, REGISTRY, TrainingOptions, not_available

CONTEXT = (
    "local_checkpoint_path",
    "remote_checkpoint_path",
    "global_step",
    "tracker_run_name",
    "tracker_project_name",
    "model_family",
    "model_type",
    "lora_type",
    "huggingface_path",
)
"""Placeholders in addition to the options whose names begin with ``validation_``."""
PREFIX = "validation_"
REPOSITORY_OPTION = "hub_model_id"


@cache
def known_placeholders() -> tuple[str, ...]:
    """Returns every placeholder. Options of the format that are not implemented count too, with their default."""
    return (*CONTEXT, *sorted(name for name in {*REGISTRY, *ALIASES, *not_available()} if name.startswith(PREFIX)))


def values_of(options: TrainingOptions, *, step: int, local: str = "", remote: str = "") -> dict[str, str]:
    """Returns the text of each placeholder at a step. ``local`` is the folder of a checkpoint, ``remote`` its URL."""
    chosen: dict[str, Any] = {**not_available(), **options.as_values()}
    is_adapter = chosen["model_type"] == "lora"
    context = {
        "local_checkpoint_path": local,
        "remote_checkpoint_path": remote,
        "global_step": step,
        **{name: chosen[name] for name in ("tracker_run_name", "tracker_project_name", "model_family", "model_type")},
        "lora_type": chosen["lora_type"] if is_adapter else "",
        "huggingface_path": chosen.get(REPOSITORY_OPTION),
    }
    return {name: as_text(context[name] if name in context else chosen[ALIASES.get(name, name)]) for name in known_placeholders()}


def as_text(value: object) -> str:
    """Formats a value as a user would type it; None is an empty string."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (Mapping, list, tuple)):
        return json.dumps(value, ensure_ascii=False)
    return str(value)
