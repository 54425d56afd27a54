"""The adapter file of an environment, ``lycoris_config.json``. No database, no Django."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from environments.files.config_files import LYCORIS_FILE, TextFile, read_text
from environments.files.datasets_file import new_file
from environments.files.json_text import BadJson, parse_json
from environments.paths import Home, Kind, resolve
from trainer_engine.config.family_spec import FamilySpec
from trainer_engine.config.lycoris.config_file import NOT_AN_ADAPTER, is_like_an_adapter, parse_lycoris
from trainer_engine.contract.errors import Level, Problem, errors_in, limited

OPTION = "lycoris_config"
LORA_TYPE = "lycoris"


@dataclass(frozen=True)
class AdapterFile:
    """The adapter file of an environment, which may be missing or broken."""

    given: str
    """The path as ``lycoris_config`` gives it."""
    path: Path
    document: Any
    """None if there is no file or it is not JSON."""
    problem: Problem | None
    """The reason if there is no document."""


def uses_lycoris(config: Mapping[str, Any]) -> bool:
    return config.get("model_type") == "lora" and config.get("lora_type") == LORA_TYPE


def own_path(name: str) -> str:
    """The adapter file of an environment, as its configuration names it."""
    return f"{name}/{LYCORIS_FILE}"


def find_adapter_file(config: Mapping[str, Any], name: str, home: Home) -> AdapterFile:
    """The file that a configuration names, else the one in the environment's folder."""
    given = str(config.get(OPTION) or own_path(name))
    found = resolve(given, OPTION, home=home, kind=Kind.FILE)
    if isinstance(found, Problem):
        return AdapterFile(given, home.config / name / LYCORIS_FILE, None, found)
    path = found.path if found.exists else new_file(given, home)
    document, problem = read_adapter_file(path, home)
    own = (home.config / name / LYCORIS_FILE).resolve()
    if problem is None and path != own and not is_like_an_adapter(document):
        # An option can name any file below a root, so other kinds of files are not shown.
        document, problem = None, Problem.error(OPTION, NOT_AN_ADAPTER, f"{path} is not a LyCORIS adapter file.", got=given)
    return AdapterFile(given, path, document, problem)


def read_adapter_file(path: Path, home: Home) -> tuple[Any, Problem | None]:
    """(content, None), or (None, problem) if the file cannot be used."""
    file: TextFile = read_text(home, path)
    if file.text is None:
        reason = file.trouble or "it is not there"
        return None, Problem.error(OPTION, "unreadable_file", f"The adapter file {path} cannot be used: {reason}.", got=str(path))
    try:
        return parse_json(file.text), None
    except BadJson as error:
        return None, Problem.error(OPTION, "unreadable_file", f"The adapter file {path} cannot be used: {error}.", got=str(path))


def checked(document: object, spec: FamilySpec | None) -> dict[str, Any]:
    """The check of an adapter file for the API: ``valid`` and sentences; ``problems`` holds the errors as data."""
    _, problems = parse_lycoris(document, spec)
    errors = limited(errors_in(problems))
    others = limited([problem for problem in problems if problem.level is not Level.ERROR])
    return {
        "valid": not errors,
        "errors": [str(problem) for problem in errors],
        "warnings": [str(problem) for problem in others],
        "problems": [problem.as_dict() for problem in errors],
    }
