"""Keeps the credentials of stores out of everything that is shown or written, and hands them to the engine."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from trainer_engine.contract.publishing import ADDRESS_FIELDS, HIDDEN, OPTION, SECRET_FIELDS, holds_json
from trainer_engine.contract.run import SECRETS_VARIABLE


def without_secrets(values: Mapping[str, Any]) -> dict[str, Any]:
    """Options, with or without dashes, of which the stores' credentials are hidden."""
    shown = dict(values)
    for key in (OPTION, f"--{OPTION}"):
        text = shown.get(key)
        if isinstance(text, str) and holds_json(text):
            shown[key] = _hidden(text)
        elif isinstance(text, (list, Mapping)):
            shown[key] = hidden_document(text)
    return shown


def for_engine(values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """What ``job.json`` may hold of the options, and the environment variables that hand the engine the rest."""
    shown = without_secrets(values)
    full = {OPTION: str(values[OPTION])} if shown.get(OPTION) != values.get(OPTION) else {}
    return shown, {SECRETS_VARIABLE: json.dumps(full)} if full else {}


def _hidden(text: str) -> str:
    try:
        return json.dumps(hidden_document(json.loads(text)), ensure_ascii=False)
    except (ValueError, RecursionError):
        return HIDDEN


def hidden_document(document: object) -> object:
    """The same list or object with every credential replaced."""
    if isinstance(document, list):
        return [hidden_document(entry) for entry in document]
    if not isinstance(document, Mapping):
        return document
    return {name: _hidden_field(str(name), value) for name, value in document.items()}


def _hidden_field(name: str, value: object) -> object:
    if not value:
        return value
    if name in SECRET_FIELDS:
        return HIDDEN
    if name == "request_headers" and isinstance(value, Mapping):
        return dict.fromkeys(value, HIDDEN)
    if name in ADDRESS_FIELDS and isinstance(value, str) and "?" in value:
        return f"{value.partition('?')[0]}?{HIDDEN}"
    return value
