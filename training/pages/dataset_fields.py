"""The fields of a dataset as a form: which ones a form can hold, their texts, and the entry that a sent form makes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from environments.files.json_text import BadJson, parse_json
from trainer_engine.config.datasets.names import SETS, specs
from trainer_engine.config.json_fields import WrongValue
from trainer_engine.config.option import OptionSpec
from trainer_engine.config.options.values import parse_value

COMMON = (
    *("instance_data_dir", "caption_strategy", "instance_prompt", "prepend_instance_prompt", "resolution", "resolution_type"),
    *("crop", "crop_style", "crop_aspect", "repeats", "disabled"),
)
PROMPT = "instance_prompt"
"""A text, or a list of texts; the page shows a list as JSON."""


@dataclass(frozen=True)
class FieldRow:
    """One field of a dataset."""

    name: str
    value: str
    help: str
    default: str
    choices: tuple[str, ...]
    is_common: bool


def kind_of(entry: Mapping[str, Any]) -> str:
    """The kind of a dataset; ``image`` for one that is not known."""
    given = entry.get("dataset_type", "image")
    return given if isinstance(given, str) and given in SETS else "image"


def _fields(kind: str) -> Iterator[tuple[str, OptionSpec | None]]:
    """The fields of a kind of dataset that a form can hold, the common ones first. The prompt has no plain declaration."""
    declared: dict[str, OptionSpec | None] = dict(specs(kind))
    if PROMPT in SETS[kind].model_fields:
        declared[PROMPT] = None
    first = [name for name in COMMON if name in declared]
    yield from ((name, declared[name]) for name in dict.fromkeys((*first, *declared)) if name not in ("id", "type"))


def field_rows(entry: Mapping[str, Any]) -> Iterator[FieldRow]:
    """The fields of an entry of the datasets file, the common ones first."""
    kind = kind_of(entry)
    for name, spec in _fields(kind):
        value = entry.get(name)
        if spec is None:
            help = "Stands in captions; with prepend_instance_prompt in front of each one. A list in JSON is several prompts."
            yield FieldRow(name, _text(value), help, "", (), name in COMMON)
            continue
        choices = ("true", "false") if spec.kind == "bool" else spec.choices
        default = "must be given" if spec.required else f"default: {_text(spec.default) or 'none'}"
        yield FieldRow(name, _text(value), spec.help, default, tuple(choices), name in COMMON)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else "" if value is None else json.dumps(value, ensure_ascii=False)


def changed_entry(entry: Mapping[str, Any], sent: Mapping[str, str], position: int) -> dict[str, Any]:
    """An entry with the fields of the form. Fields that the form does not hold, and unchanged ones, stay as they are."""
    found = dict(entry)
    for name, spec in _fields(kind_of(entry)):
        key = f"{position}.{name}"
        if key not in sent or sent[key] == _text(entry.get(name)):
            continue
        if sent[key] == "":
            found.pop(name, None)
        else:
            found[name] = _typed(spec, sent[key])
    return found


def _typed(spec: OptionSpec | None, text: str) -> Any:
    """The value of a text; the text itself where it is none, so that the check says why."""
    if spec is None:
        try:
            parsed = parse_json(text) if text.lstrip().startswith("[") else text
        except BadJson:
            parsed = text
        return parsed
    try:
        return parse_value(spec, text)
    except WrongValue:
        return text
