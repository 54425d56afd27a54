"""Resolves the paths of validation adapters, and of images that validations edit. No database, no Django."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from environments.paths import Home, Kind, ResolvedPath, resolve
from environments.resolve.json_options import read_json_option
from trainer_engine.config.adapters.validation_adapter import CONFIG, EXPECTED, ValidationAdapterRun, hub_file, parse_validation_adapter
from trainer_engine.config.validation_inputs import EXPECTED as INPUTS_EXPECTED
from trainer_engine.config.validation_inputs import OPTION as INPUTS
from trainer_engine.config.validation_inputs import parse_validation_inputs, written
from trainer_engine.contract.errors import Problem


@dataclass(frozen=True)
class ResolvedValidationAdapters:
    """``validation_adapter_config`` as a run is started with it."""

    text: str
    """JSON with absolute paths; as given if it is invalid."""
    taken: dict[str, ResolvedPath] = field(default_factory=dict)
    """Option or field -> the path taken."""
    problems: list[Problem] = field(default_factory=list)


def resolve_adapter(text: str | None, name: str, home: Home) -> ResolvedPath | Problem | None:
    """A local adapter file, or a folder of one; None if the text is a file on the hub and no local one."""
    if not text:
        return None
    if hub_file(text) is None:
        return resolve(text, name, home=home, must_exist=True)
    found = resolve(text, name, home=home)
    return found if isinstance(found, Problem) or found.exists else None


def resolve_validation_adapter(text: str, home: Home) -> ResolvedValidationAdapters:
    """The runs that an option's text holds, or those of the file that it names. Their content is checked with the options."""
    read = read_json_option(text, CONFIG, EXPECTED, home)
    if isinstance(read, Problem):
        return ResolvedValidationAdapters(text, problems=[read])
    content, file = read
    runs, _ = parse_validation_adapter(content)
    taken = {CONFIG: file} if file else {}
    problems: list[Problem] = []
    for source in (source for run in runs for source in run.sources):
        found = resolve_adapter(source.path, source.place, home)
        if isinstance(found, Problem):
            problems.append(found)
        elif found is not None:
            taken[source.place] = found
    return ResolvedValidationAdapters(_written(runs, taken) if runs else content, taken, problems)


def _written(runs: list[ValidationAdapterRun], taken: dict[str, ResolvedPath]) -> str:
    """The runs as JSON in their original form, so that later problems name existing fields."""
    places = {place: str(path.path) for place, path in taken.items()}
    written: list[dict[str, Any]] = []
    for run in runs:
        adapters = [{"path": places.get(source.place, source.path), "strength": source.strength} for source in run.sources]
        alone = ".adapters[" not in run.sources[0].place
        written.append({"name": run.label, **(adapters[0] if alone else {"adapters": adapters})})
    return json.dumps(written, ensure_ascii=False)


def resolve_validation_inputs(text: str, home: Home) -> tuple[str, dict[str, ResolvedPath], list[Problem]]:
    """Returns ``validation_input`` as JSON with absolute paths (as given if it is invalid), the paths by field, and their problems.

    The content is checked with the options.
    """
    read = read_json_option(text, INPUTS, INPUTS_EXPECTED, home)
    if isinstance(read, Problem):
        return text, {}, [read]
    content, file = read
    inputs, _ = parse_validation_inputs(content)
    taken = {INPUTS: file} if file else {}
    problems = []
    for one in inputs:
        found = resolve(one.path, one.place, home=home, must_exist=True, kind=Kind.FILE)
        if isinstance(found, Problem):
            problems.append(found)
        else:
            taken[one.place] = found
    paths = {place: str(path.path) for place, path in taken.items()}
    return written(inputs, paths) if inputs else content, taken, problems
