"""Takes a configuration in this trainer's own format: an export, a ``config.json``, its datasets and its adapter file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from environments.files.adapter_file import own_path
from environments.files.config_files import without_marks
from environments.imports.draft import Draft
from environments.imports.ledger import HIDDEN, SECRET_REASON, is_secret
from trainer_engine.config.lycoris.config_file import is_like_an_adapter
from trainer_engine.config.options import canonical_name
from trainer_engine.config.options.secrets import secrets_of

FORMAT = "simpletuner"
OPTIONS = frozenset(["model_family", "data_backend_config"])
"""An own configuration names one of these."""


def recognises(value: Any) -> bool:
    """Whether a parsed document is a configuration of this trainer's format, exported or not."""
    return isinstance(value, Mapping) and not OPTIONS.isdisjoint(canonical_name(str(key)) for key in without_marks(value))


def is_datasets(value: Any) -> bool:
    """Whether a parsed document is a datasets file of this format."""
    return isinstance(value, list) and all(isinstance(one, Mapping) and "id" in one for one in value)


def translate(values: list[Any], draft: Draft) -> None:
    """Takes the options as they are, and the datasets and the adapter if they were given with them."""
    family = draft.options.get("model_family")
    for value in values:
        if is_datasets(value):
            draft.datasets += [_without_secrets(dict(one), f"datasets[{number}]", draft) for number, one in enumerate(value)]
        elif isinstance(value, Mapping) and is_like_an_adapter(value):
            draft.adapter = dict(value)
        elif isinstance(value, Mapping):
            _options(value, draft)
        else:
            draft.ledger.wrong("datasets", value, "a list of objects with an id")
    if family is not None:
        draft.put("model_family", family, "model_family")
    if draft.adapter is not None:
        draft.put("lycoris_config", own_path(draft.name), "lycoris_config")


def _options(value: Mapping[str, Any], draft: Draft) -> None:
    for key, given in without_marks(value).items():
        name = canonical_name(str(key))
        if is_secret(name) or _holds_hidden(given) or secrets_of({name: given}):
            draft.ledger.leave(str(key), HIDDEN, SECRET_REASON)
        else:
            draft.put(name, given, str(key))


def _holds_hidden(value: Any) -> bool:
    """Whether a value holds a secret, shown or hidden."""
    if isinstance(value, Mapping):
        return any((is_secret(str(key)) and part) or _holds_hidden(part) for key, part in value.items())
    if isinstance(value, list):
        return any(_holds_hidden(part) for part in value)
    return isinstance(value, str) and HIDDEN in value


def _without_secrets(entry: dict[str, Any], path: str, draft: Draft) -> dict[str, Any]:
    for key in [key for key, value in entry.items() if value and (is_secret(key) or _holds_hidden(value))]:
        draft.ledger.leave(f"{path}.{key}", HIDDEN, SECRET_REASON)
        del entry[key]
    return entry
