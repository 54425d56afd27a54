"""Hides and reveals the secrets in the options of a configuration. The registry says which options hold secrets."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from trainer_engine.config import secrets
from trainer_engine.config.datasets.secrets import STORED_AS as DATASETS
from trainer_engine.config.datasets.secrets import secrets_in
from trainer_engine.config.option import OptionSpec
from trainer_engine.config.options.registry import REGISTRY, canonical_name
from trainer_engine.contract.errors import Problem
from trainer_engine.contract.run import SERVER_ONLY

Stored = Mapping[str, str]
"""Option -> its text, including its secrets."""


def _spec(key: str) -> OptionSpec | None:
    """Returns the option of a name in any spelling, or None if it does not hold secrets."""
    spec = REGISTRY.get(canonical_name(key))
    return spec if spec is not None and spec.secret else None


def hide_options(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the values as they may be stored and shown. Names may have leading dashes."""
    return {key: secrets.hide(spec, value) if value and (spec := _spec(key)) else value for key, value in values.items()}


def reveal_options(values: Mapping[str, Any], stored: Stored) -> dict[str, Any]:
    """Returns the values with each ``***`` replaced by the stored secret that it stands for."""
    return {
        key: secrets.reveal(spec, value, stored.get(spec.name, ""))
        if isinstance(value, (str, list, dict)) and value and (spec := _spec(key))
        else value
        for key, value in values.items()
    }


def secrets_of(values: Mapping[str, Any]) -> dict[str, str]:
    """Returns the options that contain secrets, by canonical name, with their text."""
    found = {spec.name: str(value) for key, value in values.items() if value and (spec := _spec(key))}
    return {name: text for name, text in found.items() if secrets.hide(REGISTRY[name], text) != text}


def secrets_of_run(values: Mapping[str, Any], datasets: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Returns the options of a run that contain secrets, as ``secrets_of``, and those of its datasets."""
    text = secrets_in(list(datasets))
    return {**secrets_of(values), **({DATASETS: text} if text else {})}


def hidden_problems(values: Mapping[str, Any]) -> list[Problem]:
    """Returns a problem for each ``***`` without a stored secret. ``values`` are by canonical name."""
    return secrets.hidden_problems(REGISTRY, values)


def for_engine(stored: Stored) -> dict[str, str]:
    """Returns the environment variable with the secrets that an engine needs, or nothing if it needs none.

    The engine removes the variable from its environment when it reads it.
    """
    needed = {name: text for name, text in stored.items() if (name in REGISTRY or name == DATASETS) and name not in SERVER_ONLY}
    return {secrets.VARIABLE: json.dumps(needed, ensure_ascii=False)} if needed else {}
