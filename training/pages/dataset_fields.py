"""The fields of a dataset as a form: their texts, and the entry that a sent form makes.

The fields are those that the registry declares for the kind of the dataset, its source and its caption strategy. A field that is an object
is several fields with a dot in their names, a field that is a list is JSON.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from environments.create.starter import whole
from environments.files.json_text import BadJson, parse_json
from trainer_engine.config.dataset_tables import FOLDER_FIELD, TableEntry, caption_specs, fields_of, source_specs
from trainer_engine.config.datasets.docs import OBJECTS, SPECIAL
from trainer_engine.config.datasets.names import SETS, SWITCH, specs
from trainer_engine.config.json_fields import WrongValue
from trainer_engine.config.option import OptionSpec, spec_of
from trainer_engine.config.options.values import parse_value

COMMON = (
    *("instance_data_dir", "caption_strategy", "instance_prompt", "prepend_instance_prompt", "resolution", "resolution_type"),
    *("crop", "crop_style", "crop_aspect", "repeats", "video.num_frames", "conditioning_data"),
    *("conditioning_type", "source_dataset_id", "default", SWITCH.name),
)
FIXED = ("id", "type", "dataset_type")
"""What a dataset is. Another kind or source is another dataset."""
LINK = re.compile(r" See \[[^]]*\]\([^)]*\)\.")
"""A link of the documentation to a section of its own page."""


@dataclass(frozen=True, kw_only=True)
class FieldRow:
    """One field of a dataset."""

    name: str
    value: str
    help: str
    default: str
    choices: tuple[str, ...] = ()
    is_json: bool = False
    is_common: bool


@dataclass(frozen=True)
class Field:
    """A field that a form can hold. ``spec`` is None for a list, whose value is JSON."""

    name: str
    spec: OptionSpec | None
    is_own: bool = False
    """Whether the source or the caption strategy of the dataset declares it."""

    def name_in(self, entry: Mapping[str, Any]) -> str:
        """The name that an entry uses for it, which may be another spelling."""
        others = self.spec.aliases if self.spec else ()
        return next((name for name in others if name in entry and self.name not in entry), self.name)

    @property
    def help(self) -> str:
        return self.spec.help if self.spec else LINK.sub("", SPECIAL[self.name]).replace("`", "")


def kind_of(entry: Mapping[str, Any]) -> str:
    """The kind of a dataset; ``image`` for one that is not known."""
    given = entry.get("dataset_type", "image")
    return given if isinstance(given, str) and given in SETS else "image"


def takes_sources(kind: str) -> bool:
    """Whether the files of a kind of dataset may lie elsewhere than in a folder of this machine."""
    return "own_fields" in SETS[kind].model_fields


def _tables(entry: Mapping[str, Any]) -> Iterator[TableEntry]:
    """The source and the caption strategy of a dataset, as far as they are known."""
    fields = SETS[kind_of(entry)].model_fields
    chosen = ("own_fields", "type", source_specs(), "local"), ("caption_strategy", "caption_strategy", caption_specs(), "")
    for needed, field, known, usual in chosen:
        name = entry.get(field, usual)
        if needed in fields and isinstance(name, str) and name in known:
            yield known[name]


@cache
def _plain(kind: str) -> tuple[Field, ...]:
    """The fields of a kind of dataset whatever its source."""
    model = SETS[kind].model_fields
    objects = [name for name in OBJECTS if name in model and (name != "video" or kind == "video")]
    parts = [(f"{name}.{key}", spec_of(key, name, info)) for name in objects for key, info in OBJECTS[name][1].model_fields.items()]
    declared = [*specs(kind).items(), (SWITCH.name, SWITCH), *parts, *((name, None) for name in SPECIAL if name in model)]
    return tuple(Field(name, spec) for name, spec in declared if name not in FIXED)


def fields(entry: Mapping[str, Any]) -> Iterator[Field]:
    """The fields that a form of a dataset can hold, the common ones first."""
    tables = list(_tables(entry))
    own = [Field(name, spec, is_own=True) for table in tables for name, spec in fields_of(table).items()]
    found = {field.name: field for field in (*_plain(kind_of(entry)), *own)}
    if any(getattr(table, "place_field", FOLDER_FIELD) != FOLDER_FIELD for table in tables) and FOLDER_FIELD not in entry:
        found.pop(FOLDER_FIELD, None)
    first = [*(field.name for field in own), *(name for name in COMMON if name in found)]
    yield from (found[name] for name in dict.fromkeys((*first, *found)) if _can_be_shown(entry, name))


def _can_be_shown(entry: Mapping[str, Any], name: str) -> bool:
    """Whether a field of an object is reached: ``parquet`` may be given as something else than an object."""
    outer, dot, _ = name.partition(".")
    return not dot or isinstance(entry.get(outer, {}), dict)


def field_rows(entry: Mapping[str, Any]) -> Iterator[FieldRow]:
    """The fields of an entry of the datasets file, the common ones first."""
    for field in fields(entry):
        spec, is_common = field.spec, field.is_own or field.name in COMMON
        value = _text(_value(entry, field.name_in(entry)))
        if spec is None:
            yield FieldRow(name=field.name, value=value, help=field.help, default="none", is_json=True, is_common=is_common)
            continue
        choices = ("true", "false") if spec.kind == "bool" else spec.choices
        default = "must be given" if spec.required else f"default: {_text(spec.default) or 'none'}"
        yield FieldRow(name=field.name, value=value, help=field.help, default=default, choices=tuple(choices), is_common=is_common)


def _value(entry: Mapping[str, Any], name: str) -> Any:
    outer, dot, inner = name.partition(".")
    return entry.get(outer, {}).get(inner) if dot else entry.get(name)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else "" if value is None else json.dumps(value, ensure_ascii=False)


def changed_entry(entry: Mapping[str, Any], sent: Mapping[str, str], position: int | str) -> dict[str, Any]:
    """An entry with the fields of the form. Fields that the form does not hold, and unchanged ones, stay as they are."""
    found = dict(entry)
    for field in fields(entry):
        name, text = field.name_in(entry), sent.get(f"{position}.{field.name}")
        if text is None or text.replace("\r\n", "\n") == _text(_value(entry, name)):
            continue
        _set(found, name, None if text.strip() == "" else _typed(field.spec, text))
    return found


def _set(entry: dict[str, Any], name: str, value: Any) -> None:
    """Give a field a value; None removes it. An object without any field is removed, too."""
    outer, dot, inner = name.partition(".")
    if dot:
        kept = {key: one for key, one in {**entry.get(outer, {}), inner: value}.items() if one is not None}
        name, value = outer, kept or None
    if value is None:
        entry.pop(name, None)
    else:
        entry[name] = value


def _typed(spec: OptionSpec | None, text: str) -> Any:
    """The value of a text; the text itself where it is none, so that the check says why."""
    try:
        if spec is None:
            return parse_json(text) if text.lstrip()[:1] in ("[", "{") else text
        value = parse_value(spec, text)
        return whole(value) if isinstance(value, float) else value
    except (BadJson, WrongValue):
        return text
