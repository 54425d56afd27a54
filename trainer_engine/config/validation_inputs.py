"""Parses ``validation_input``: images that the validation edits, each with its prompt."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from trainer_engine.config.json_fields import WrongValue, entries_of, read_json
from trainer_engine.config.option import holds_json
from trainer_engine.config.options.values import parse_text
from trainer_engine.config.prompt_library import unsafe_reason
from trainer_engine.contract.errors import Problem
from trainer_engine.contract.messages import Suggestions

OPTION = "validation_input"
EXPECTED = 'a list of JSON: [{"path": "/data/room.png", "prompt": "paint the wall green"}]'
KEYS = ("path", "prompt", "shortname")
MOST = 100


@dataclass(frozen=True)
class ValidationInput:
    """An image to edit in every validation."""

    path: str
    prompt: str
    shortname: str | None
    """Name of the generated images; None takes that of the file."""
    place: str
    """The field that names the file: ``validation_input[1].path``."""


def parse_validation_inputs(text: str | None) -> tuple[list[ValidationInput], list[Problem]]:
    """Returns the inputs in the text of the option and every problem with it. If there is a problem there are no inputs."""
    if not text or not holds_json(text):
        return [], []  # the file of a path is read before
    document, problems = read_json(text, OPTION)
    if problems:
        return [], problems
    entries, problems = entries_of(document, OPTION, "Inputs", MOST)
    if not entries and not problems:
        problems.append(Problem.error(OPTION, "empty", "No image is named.", expected=EXPECTED))
    inputs = [_input(entry, f"{OPTION}[{index}]", problems) for index, entry in enumerate(entries)]
    return ([], problems) if problems else (inputs, [])


def _input(entry: Mapping[str, Any], place: str, problems: list[Problem]) -> ValidationInput:
    for key in (str(key) for key in entry if key not in KEYS):
        hint = Suggestions().nearest(key, KEYS)
        problems.append(Problem.error(f"{place}.{key[:100]}", "unknown_field", f"An input has no field {key[:100]!r}.", hint=hint))
    path, prompt, shortname = (_text(entry, place, key, problems) for key in KEYS)
    for key, value in (("path", path), ("prompt", prompt)):
        if value == "":
            problems.append(Problem.error(f"{place}.{key}", "missing", f"The input has no {key}.", expected=EXPECTED))
    reason = unsafe_reason(shortname) if shortname else None
    if reason:
        message = f"The name {shortname!r} {reason}, and images are named after it."
        problems.append(Problem.error(f"{place}.shortname", "not_a_name", message, got=shortname))
    return ValidationInput(path, prompt, shortname or None, f"{place}.path")


def _text(entry: Mapping[str, Any], place: str, key: str, problems: list[Problem]) -> str:
    try:
        return parse_text(entry.get(key) or "").strip()
    except WrongValue as wrong:
        problems.append(Problem.error(f"{place}.{key}", wrong.code, f"{key} {wrong}.", got=entry[key], expected="text"))
        return "?"


def written(inputs: Sequence[ValidationInput], paths: Mapping[str, str]) -> str:
    """Returns inputs as the text of the option. ``paths``: ``place`` -> absolute path."""
    entries = [
        {"path": paths.get(one.place, one.path), "prompt": one.prompt, **({"shortname": one.shortname} if one.shortname else {})}
        for one in inputs
    ]
    return json.dumps(entries, ensure_ascii=False)


def name_of(one: ValidationInput) -> str:
    """Returns the name of the file, or the given name."""
    return one.shortname or PurePath(one.path).name
