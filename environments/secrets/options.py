"""Configurations without their secrets, and with them: what lies in rows and files, and what a run is started with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from environments.paths import Home
from environments.secrets import store
from environments.secrets.store import of_environment
from trainer_engine.config.options.secrets import hide_options, reveal_options, secrets_of
from trainer_engine.contract.files import read_document


def with_secrets(home: Home, name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Values, by any spelling, in which each ``***`` is what the environment stores for it."""
    return reveal_options(values, store.read(home, of_environment(name)))


def keep_secrets(home: Home, name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Put the secrets of an environment's configuration into the store; the values as they may be stored and shown. Raises OSError."""
    full = with_secrets(home, name, values)
    found = secrets_of(full)
    if found != store.read(home, of_environment(name)):
        store.write(home, of_environment(name), found)
    return hide_options(full)


def holds_the_same(home: Home, name: str, config: Mapping[str, Any], values: Mapping[str, Any]) -> bool:
    """Whether an environment's stored configuration, and its secrets, are what these values with nothing hidden say."""
    stored, meant = store.read(home, of_environment(name)), secrets_of(values)
    is_same = stored.keys() == meant.keys() and all(_same_json(stored[option], meant[option]) for option in stored)
    return is_same and dict(config) == hide_options(values)


def _same_json(one: str, other: str) -> bool:
    try:
        return bool(read_document(one) == read_document(other))
    except ValueError:
        return one == other
