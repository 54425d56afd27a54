"""Finds and reads the datasets file of a configuration. No database, no Django."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from environments.files.config_files import CONFIG_FILE, LYCORIS_FILE, TextFile, read_text
from environments.files.json_text import BadJson, parse_json
from environments.paths import Home, ResolvedPath, expanded, outside, resolve
from environments.resolve.path_options import LOCAL
from trainer_engine.contract.errors import Problem

OPTION = "data_backend_config"


@dataclass(frozen=True)
class DatasetsFile:
    """The datasets file that a configuration names."""

    given: str
    """The path as ``data_backend_config`` gives it; empty if there is none."""
    path: Path | None
    """The absolute path, which need not exist; None if the option is invalid."""
    exists: bool

    def as_answer(self) -> dict[str, str | None]:
        return {"path": self.given or None, "absolute_path": str(self.path) if self.path else None}


def locate(config: Mapping[str, Any], home: Home) -> DatasetsFile:
    """Find the datasets file of a configuration, as a run would."""
    given = config.get(OPTION)
    if not isinstance(given, str) or not given:
        return DatasetsFile("", None, exists=False)
    found = resolve(given, OPTION, home=home, kind=LOCAL[OPTION].kind)
    if isinstance(found, Problem):
        return DatasetsFile(given, None, exists=False)
    path = found.path if found.exists else new_file(given, home)
    return DatasetsFile(given, path, exists=found.exists)


def new_file(given: str, home: Home) -> Path:
    """Where a new datasets file is created: relative paths are below ``config/``, with or without that prefix."""
    path = expanded(given)
    parts = PurePosixPath(given).parts
    below_config = parts[1:] if len(parts) > 1 and parts[0] == home.config.name else parts
    return path if path.is_absolute() else home.config.joinpath(*below_config)


def destination(given: object, option: str, home: Home) -> Path | Problem:
    """The path to which the datasets file ``given`` is written, or the problem that prevents it."""
    found = resolve(given, option, home=home, kind=LOCAL[OPTION].kind, writing=True)
    if isinstance(found, Problem):
        return found
    if not found.given.endswith(".json"):
        return Problem.error(
            option, "not_json", f"{found.given!r} does not end in .json.", got=found.given, expected="a path that ends in .json"
        )
    path = found.path if found.exists else Path(os.path.realpath(new_file(found.given, home)))
    if path.name in (CONFIG_FILE, LYCORIS_FILE) and path.parent.parent == Path(os.path.realpath(home.config)):
        what = "options" if path.name == CONFIG_FILE else "adapter"
        message = f"{found.given!r} holds an environment's {what}; its datasets need a file of their own."
        return Problem.error(option, "config_file", message, got=found.given, expected="another name, such as multidatabackend.json")
    refusal = home.place_rule.refusal(path, writing=True)
    return path if refusal is None else outside(found.given, option, refusal)


def unwrapped_datasets(document: Any) -> Any:
    """The entries of an exported datasets file, ``{"_metadata": {...}, "datasets": [...]}``; any other document as it is."""
    entries = document.get("datasets") if isinstance(document, Mapping) else None
    is_wrapper = isinstance(entries, list) and all(key == "datasets" or str(key).startswith("_") for key in document)
    return entries if is_wrapper else document


def read_document(found: ResolvedPath, home: Home) -> tuple[Any, list[Problem]]:
    """The unchecked content of a datasets file, or why it cannot be read."""
    file = read_text(home, found.path)
    if file.text is None:
        return None, [_unreadable(found, file)]
    try:
        return unwrapped_datasets(parse_json(file.text)), []
    except BadJson as error:
        message = f"{found.path} is {error}." if str(error).startswith("not") else f"{found.path}: {error}."
        return None, [Problem.error(OPTION, "invalid_json", message, got=found.given, expected="a JSON list of datasets")]


def _unreadable(found: ResolvedPath, file: TextFile) -> Problem:
    reason = file.trouble or "it is not there any more"
    return Problem.error(OPTION, "unreadable_file", f"{found.path} cannot be read: {reason}.", got=found.given)
