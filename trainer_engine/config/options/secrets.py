"""Secrets of a whole configuration, option by option. Which options hold any is read from the registry."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from trainer_engine.config import secrets
from trainer_engine.config.option import OptionSpec
from trainer_engine.config.options.registry import REGISTRY, canonical_name
from trainer_engine.contract.errors import Problem
from trainer_engine.contract.run import SERVER_ONLY

Stored = Mapping[str, str]
"""Option -> its text with every secret in it."""


def _spec(key: str) -> OptionSpec | None:
    """The option of that name, however spelled, where it holds secrets."""
    spec = REGISTRY.get(canonical_name(key))
    return spec if spec is not None and spec.secret else None


def hide_options(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values as they may be stored and shown; names with or without dashes."""
    return {key: secrets.hide(spec, value) if value and (spec := _spec(key)) else value for key, value in values.items()}


def reveal_options(values: Mapping[str, Any], stored: Stored) -> dict[str, Any]:
    """The values with each ``***`` replaced by what it stands for."""
    return {
        key: secrets.reveal(spec, value, stored.get(spec.name, ""))
        if isinstance(value, (str, list, dict)) and value and (spec := _spec(key))
        else value
        for key, value in values.items()
    }


def secrets_of(values: Mapping[str, Any]) -> dict[str, str]:
    """Those options, by canonical name, whose text may not be shown as it is."""
    found = {spec.name: str(value) for key, value in values.items() if value and (spec := _spec(key))}
    return {name: text for name, text in found.items() if secrets.hide(REGISTRY[name], text) != text}


def hidden_problems(values: Mapping[str, Any]) -> list[Problem]:
    """A problem for each ``***`` that stands for nothing; ``values`` by canonical name."""
    return secrets.hidden_problems(REGISTRY, values)


def for_engine(stored: Stored) -> dict[str, str]:
    """Those that an engine needs, as the variable that it reads and takes out of its environment; empty where it needs none."""
    needed = {name: text for name, text in stored.items() if name in REGISTRY and name not in SERVER_ONLY}
    return {secrets.VARIABLE: json.dumps(needed, ensure_ascii=False)} if needed else {}
