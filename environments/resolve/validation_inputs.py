"""Resolves the paths of images that validations edit. No database, no Django."""

from __future__ import annotations

from environments.paths import Home, Kind, ResolvedPath, resolve
from environments.resolve.json_options import read_json_option
from trainer_engine.config.validation_inputs import EXPECTED, OPTION, parse_validation_inputs, written
from trainer_engine.contract.errors import Problem


def resolve_validation_inputs(text: str, home: Home) -> tuple[str, dict[str, ResolvedPath], list[Problem]]:
    """Returns ``validation_input`` as JSON with absolute paths (as given if it is invalid), the paths by field, and their problems.

    The content is checked with the options.
    """
    read = read_json_option(text, OPTION, EXPECTED, home)
    if isinstance(read, Problem):
        return text, {}, [read]
    content, file = read
    inputs, _ = parse_validation_inputs(content)
    taken = {OPTION: file} if file else {}
    problems = []
    for one in inputs:
        found = resolve(one.path, one.place, home=home, must_exist=True, kind=Kind.FILE)
        if isinstance(found, Problem):
            problems.append(found)
        else:
            taken[one.place] = found
    paths = {place: str(path.path) for place, path in taken.items()}
    return written(inputs, paths) if inputs else content, taken, problems
