"""Parses the options of validation adapters (``validation_adapter_path``, ``_config``), and names their images."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from trainer_engine.config.json_fields import entries_of, read_json
from trainer_engine.config.option import holds_json
from trainer_engine.config.prompt_library import file_name, unsafe_reason
from trainer_engine.contract.errors import Problem

OPTION = "validation_adapter_path"
CONFIG = "validation_adapter_config"
NAME, STRENGTH, MODE = "validation_adapter_name", "validation_adapter_strength", "validation_adapter_mode"
RUN_KEYS = ("name", "label", "path", "strength", "adapters")
EXPECTED = "a list of JSON, or an object with runs: [{name, path, strength}]"
LARGEST = 1e6
MOST_RUNS, MOST_ADAPTERS = 16, 8
RESERVED = ("ema", "startup")
"""Labels that other images use."""
USUAL_FILE = "pytorch_lora_weights.safetensors"
ENDING = ".safetensors"
COMPARISON, NONE = "comparison", "none"
ADDRESS = re.compile(r"(?P<repository>[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})(?::(?P<file>[^:\\\0]+))?\Z", re.ASCII)


@dataclass(frozen=True)
class HubFile:
    """A file in a repository on the hub."""

    repository: str
    file: str


def hub_file(text: str) -> HubFile | None:
    """Parses ``owner/name`` or ``owner/name:file``. Returns None if the text can only be a local path."""
    found = ADDRESS.match(text)
    if found is None or ".." in text or "--" in found["repository"]:
        return None
    if found["file"] is None and text.endswith(ENDING):
        return None
    return HubFile(found["repository"], found["file"] or USUAL_FILE)


def label_of(path: str, name: str | None) -> str:
    """Returns the suffix of the shortname of an adapter's images: the given name, or that of the file, folder or repository."""
    if name:
        return name
    there = hub_file(path)
    if there is not None and not path.startswith(("/", ".", "~")):
        own = PurePath(there.file).stem
        return PurePath(there.repository).name if there.file == USUAL_FILE else own
    place = PurePath(path)
    return place.parent.name if place.name == USUAL_FILE else place.name.removesuffix(ENDING)


@dataclass(frozen=True)
class ValidationAdapterSource:
    """One adapter that images are generated with."""

    path: str
    strength: float
    place: str
    """The option or field that names it: ``validation_adapter_config[1].path``."""


@dataclass(frozen=True)
class ValidationAdapterRun:
    """The adapters that an image is generated with, and its label."""

    label: str
    sources: tuple[ValidationAdapterSource, ...]


def validation_adapter_runs(validation: Mapping[str, Any]) -> list[ValidationAdapterRun]:
    """Returns the adapters to generate images with, from valid option values by name; empty if there are none."""
    if validation[MODE] == NONE:
        return []
    if validation[OPTION]:
        path = validation[OPTION]
        return [ValidationAdapterRun(label_of(path, validation[NAME]), (ValidationAdapterSource(path, validation[STRENGTH], OPTION),))]
    return parse_validation_adapter(validation[CONFIG])[0] if validation[CONFIG] else []


def parse_validation_adapter(text: str) -> tuple[list[ValidationAdapterRun], list[Problem]]:
    """Returns the runs in ``validation_adapter_config`` and every problem with it. If there is a problem there are no runs."""
    if not holds_json(text):
        return [], []  # the file of a path is read before
    document, problems = read_json(text, CONFIG)
    if problems:
        return [], problems
    if isinstance(document, Mapping) and "runs" in document:
        problems += [_unknown(CONFIG, key, ("runs",)) for key in document if key != "runs"]
        document = document["runs"]
    entries, wrong = entries_of(document, CONFIG, "Runs", MOST_RUNS)
    problems += wrong
    if not entries and not wrong:
        problems.append(Problem.error(CONFIG, "empty", "No adapter is named.", expected=EXPECTED))
    runs = [_run(entry, f"{CONFIG}[{index}]", problems) for index, entry in enumerate(entries)]
    first: dict[str, int] = {}
    for index, run in enumerate(runs):
        earlier = first.setdefault(file_name(run.label).casefold(), index)
        if earlier != index and run.label:
            message = f"The runs {earlier} and {index} have the same name, {run.label!r}, and images are named after it."
            problems.append(Problem.error(f"{CONFIG}[{index}].name", "same_name", message, got=run.label, expected="names that differ"))
    return ([], problems) if problems else (runs, [])


def label_problems(label: str, place: str, hint: str = "") -> list[Problem]:
    """Returns a problem if images cannot be named after a label."""
    reason = unsafe_reason(label)
    if reason:
        message, expected = (
            f"The name {label!r} {reason}, and images are named after it.",
            "letters, digits, spaces, dots, dashes, underscores",
        )
        return [Problem.error(place, "unsafe_name", message, got=label, expected=expected, hint=hint)]
    if label.casefold() in RESERVED:
        message, expected = f"The name {label} is reserved for other images.", f"none of {', '.join(RESERVED)}"
        return [Problem.error(place, "reserved_name", message, got=label, expected=expected, hint=hint)]
    return []


def address_problems(path: str, place: str) -> list[Problem]:
    """Returns a problem if a file on the hub is not a safetensors file. Local files are checked before a start."""
    there = hub_file(path)
    if there is None or (there.file.endswith(ENDING) and not there.file.startswith("/")):
        return []
    message = f"{there.file} in the repository {there.repository} is not a {ENDING} file."
    return [Problem.error(place, "not_safetensors", message, got=path, expected=f"owner/name:file{ENDING}")]


def strength_problems(strength: object, place: str) -> list[Problem]:
    expected = "a number other than 0"
    if not _is_number(strength):
        return [Problem.error(place, "wrong_type", "The strength is not a number.", got=strength, expected=expected)]
    if strength == 0:
        message = "At a strength of 0 the images would not show the adapter."
        return [
            Problem.error(place, "out_of_range", message, got=strength, expected=expected, hint=f"or set {MODE}={NONE} to use no adapter")
        ]
    return []


def _run(entry: Mapping[str, Any], place: str, problems: list[Problem]) -> ValidationAdapterRun:
    problems += [_unknown(place, key, RUN_KEYS) for key in entry if key not in RUN_KEYS]
    several = entry.get("adapters")
    if ("path" in entry) == ("adapters" in entry):
        message = "A run has one path, or a list of adapters."
        problems.append(Problem.error(f"{place}.path", "one_of_two", message, got=sorted(entry), expected="path or adapters"))
        return ValidationAdapterRun("", ())
    if several is not None and "strength" in entry:
        message = "With several adapters, each has its own strength."
        problems.append(Problem.error(f"{place}.strength", "one_of_two", message, got=entry["strength"], expected="strength in adapters"))
    if "path" in entry:
        sources = [_source(entry, place, problems)]
    else:
        found, wrong = entries_of(several, f"{place}.adapters", "Adapters", MOST_ADAPTERS)
        problems += wrong
        keys = ("path", "strength")
        problems += [
            _unknown(f"{place}.adapters[{number}]", key, keys) for number, one in enumerate(found) for key in one if key not in keys
        ]
        sources = [_source(one, f"{place}.adapters[{number}]", problems) for number, one in enumerate(found)]
        if not found and not wrong:
            problems.append(Problem.error(f"{place}.adapters", "empty", "The list has no adapter.", expected="[{path, strength}]"))
    return ValidationAdapterRun(_label(entry, place, sources, problems), tuple(sources))


def _label(entry: Mapping[str, Any], place: str, sources: list[ValidationAdapterSource], problems: list[Problem]) -> str:
    given = [key for key in ("name", "label") if key in entry]
    if len(given) > 1:
        problems.append(Problem.error(f"{place}.name", "one_of_two", "name and label mean the same.", expected="one of them"))
    if not given and len(sources) != 1:
        message = "A run with several adapters needs a name."
        problems.append(Problem.error(f"{place}.name", "missing", message, expected="text"))
        return ""
    label = entry[given[0]] if given else label_of(sources[0].path, None) if sources[0].path else ""
    where = f"{place}.{given[0] if given else 'path'}"
    if not isinstance(label, str):
        problems.append(Problem.error(where, "wrong_type", "The name is not text.", got=label, expected="text"))
        return ""
    if given or label:
        problems += label_problems(label, where, "" if given else "give the run a name")
    return label


def _source(entry: Mapping[str, Any], place: str, problems: list[Problem]) -> ValidationAdapterSource:
    path, strength = entry.get("path"), entry.get("strength", 1.0)
    problems += strength_problems(strength, f"{place}.strength")
    if not isinstance(path, str) or not path.strip():
        problems.append(
            Problem.error(f"{place}.path", "wrong_type", "The path is not text.", got=path, expected="a path or owner/name:file")
        )
        return ValidationAdapterSource("", 1.0, f"{place}.path")
    problems += address_problems(path, f"{place}.path")
    return ValidationAdapterSource(path, float(strength) if _is_number(strength) else 1.0, f"{place}.path")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < LARGEST


def _unknown(place: str, key: str, known: tuple[str, ...]) -> Problem:
    return Problem.error(f"{place}.{key}", "unknown_key", f"There is no key {key!r} here.", got=key, expected=f"one of {', '.join(known)}")
