"""Reads the fields of an entry that hold an object, whose keys are declared like options."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import PurePath
from typing import Any, TypeVar

from trainer_engine.config.datasets.entry import EntryDraft, fill, located
from trainer_engine.config.datasets.object_fields import TableFile
from trainer_engine.config.json_fields import WrongValue
from trainer_engine.config.option import OptionGroup, spec_of
from trainer_engine.config.options.values import parse_value
from trainer_engine.contract.files import read_document
from trainer_engine.contract.messages import Suggestions

LONGEST_KEY = 60
TABLE = "parquet"
TABLE_FILES = (".parquet", ".jsonl", ".json")
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
        if value is None or value == "":
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


def read_table(draft: EntryDraft, columns: Mapping[str, Any]) -> None:
    """Reads ``parquet``: the table with captions or sizes. ``columns`` are names of columns that it takes if it gives none."""
    given = _as_document(draft.raw.get(TABLE))
    draft.values[TABLE] = None
    if isinstance(given, Mapping) and isinstance(given.get("caption_column"), list):
        listed = given["caption_column"]
        if not all(isinstance(name, str) and name for name in listed):
            draft.error(f"{TABLE}.caption_column", "not_text", f"{TABLE}.caption_column is no list of names of columns.", got=listed)
            return
        given = {**given, "caption_column": json.dumps(listed) if listed else None}
    table = read_object(replace(draft, raw={**draft.raw, TABLE: given}), TABLE, TableFile, {n: v for n, v in columns.items() if v})
    path = fill(draft, TABLE, table.path) if table else None
    if table is None or path is None:
        return
    if PurePath(path).suffix.lower() not in TABLE_FILES:
        expected = f"a file that ends in {', '.join(TABLE_FILES)}"
        draft.error(f"{TABLE}.path", "not_a_table", f"{TABLE}.path names no table.", got=path, expected=expected)
        return
    found = located(draft, f"{TABLE}.path", path, TABLE)
    draft.values[TABLE] = table.model_copy(update={"path": found}) if found else None


def _as_document(given: object) -> object:
    """Parses JSON in a text, as forms send it."""
    if not isinstance(given, str):
        return given
    try:
        return read_document(given)
    except ValueError:
        return None
