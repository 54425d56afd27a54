"""Reads the fields of an entry that hold an object, whose keys are declared like options."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from trainer_engine.config.datasets.entry import EntryDraft
from trainer_engine.config.json_fields import WrongValue
from trainer_engine.config.option import OptionGroup, spec_of
from trainer_engine.config.options.values import parse_value
from trainer_engine.contract.files import read_document
from trainer_engine.contract.messages import Suggestions

LONGEST_KEY = 60
Group = TypeVar("Group", bound=OptionGroup)


def read_object(draft: EntryDraft, name: str, group: type[Group], defaults: Mapping[str, Any] | None = None) -> Group | None:
    """Returns the object in a field, or None if it is missing or has an error, which is reported with its key.

    ``defaults`` are values of keys that the object does not have.
    """
    given = draft.raw.get(name)
    if given in (None, "", {}):
        return None
    document = _as_document(given)
    if not isinstance(document, Mapping):
        expected = f"an object of {', '.join(group.model_fields)}"
        draft.error(name, "not_an_object", f"{name} is not an object.", got=type(given).__name__, expected=expected)
        return None
    values, suggestions, errors = dict(defaults or {}), Suggestions(), len(draft.reported)
    for key, value in document.items():
        word = str(key)
        info = group.model_fields.get(word)
        if info is None:
            hint = suggestions.nearest(word, group.model_fields)
            what, expected = f"{name} has no key {word[:LONGEST_KEY]!r}.", ", ".join(group.model_fields)
            draft.error(f"{name}.{word[:LONGEST_KEY]}", "unknown_field", what, expected=expected, hint=hint)
            continue
        spec = spec_of(word, name, info)
        try:
            values[word] = parse_value(spec, value)
        except WrongValue as wrong:
            draft.error(f"{name}.{word}", wrong.code, f"{name}.{word} {wrong}.", got=value, expected=spec.expected, hint=wrong.hint)
    for key, info in group.model_fields.items():
        if info.is_required() and key not in values:
            draft.error(f"{name}.{key}", "missing", f"{name} has no {key}.", expected=spec_of(key, name, info).help)
    return group.model_validate(values) if len(draft.reported) == errors else None


def _as_document(given: object) -> object:
    """Parses JSON in a text, as forms send it."""
    if not isinstance(given, str):
        return given
    try:
        return read_document(given)
    except ValueError:
        return None
