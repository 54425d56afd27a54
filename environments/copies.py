"""Copies and renames environments. What lies in an environment's folder comes along, and paths into that folder are adapted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from environments.create.names import name_problem
from environments.errors import EnvironmentExists, EnvironmentProblems
from environments.files.adapter_file import OPTION as ADAPTER_OPTION
from environments.files.config_files import DATASETS_FILE, LYCORIS_FILE, folder_of, read_text, remove_files, writable
from environments.files.datasets_file import OPTION, locate, new_file
from environments.files.json_text import BadJson, parse_json, write_json
from environments.files.own_files import write_own_text
from environments.home import current_home
from environments.models import Action, Environment
from environments.paths import Home, resolve
from environments.resolve.changes import Changed, changes
from environments.resolve.path_options import LOCAL
from environments.secrets import store
from environments.secrets.datasets import keep_text, of_file, revealed
from environments.secrets.store import with_secrets
from environments.services import find
from environments.sync import own_datasets_file, record, sync_from_disk
from environments.writing import change, locked, new_row, write_row
from trainer_engine.contract.errors import Problem

OUTPUT = "output_dir"
OUTPUTS = "output"
"""Folder of the home in which a new environment writes."""
OWN_FILES = {OPTION: DATASETS_FILE, ADAPTER_OPTION: LYCORIS_FILE}
"""Option -> the usual name of the file that it names, in an environment's folder."""


@dataclass(frozen=True)
class Copied:
    """A new or renamed environment, and the options that its source has otherwise."""

    environment: Environment
    changed: tuple[Changed, ...]


def copy_environment(name: str, target: str, *, actor: str) -> Copied:
    """Copy an environment with its datasets and adapter file. The copy gets an output folder of its own.

    Raises EnvironmentNotFound, EnvironmentExists, EnvironmentProblems, FilesNotWritable.
    """
    source = _usable(name)
    _is_free(target, "target_name")
    values = with_secrets(current_home(), name, source.config)
    copied = {**values, **_paths_of_copy(values, name, target, current_home())}
    with change() as home:
        row = new_row(target, description=source.description, tags=source.tags)
        _write_copy(row, copied, folder_of(home, name), actor, home)
    return Copied(row, _differing(source, row))


def _write_copy(row: Environment, values: dict[str, Any], source: Path, actor: str, home: Home) -> None:
    """Write the files and the row of a copy, or no file. Raises OSError."""
    written: list[str] = []
    try:
        for file_name in OWN_FILES.values():
            if _copy_file(source / file_name, folder_of(home, row.name) / file_name, home):
                written.append(file_name)
        write_row(row, values, Action.COPIED, actor, home)
    except Exception:  # also of a database whose disk is full
        remove_files(home, row.name, *written)
        raise


def rename_environment(name: str, target: str, *, actor: str) -> Copied:
    """Rename an environment and its folder. The revisions so far stay under the former name; runs and their folders stay as they are.

    Raises EnvironmentNotFound, EnvironmentExists, EnvironmentProblems, FilesNotWritable.
    """
    _usable(name)
    _is_free(target, "new_name")
    with change() as home:
        row = locked(name)
        _keeps_its_runs(row, home)
        before, values = row.config, with_secrets(home, name, row.config)
        renamed = {**values, **_paths_of_renamed(values, name, target, home)}
        record(row, Action.RENAMED, actor, home)
        row.name = target
        _move(row, renamed, name, actor, home)
    return Copied(row, changes(before, {}, row.config))


def _move(row: Environment, values: dict[str, Any], former: str, actor: str, home: Home) -> None:
    """Rename the folder and write the row under its new name; a folder whose files cannot be written gets its name back."""
    old, new = folder_of(home, former), folder_of(home, row.name)
    for folder in (old, new):
        writable(home, folder)
    named = locate(row.config, home).path
    inside = {own_datasets_file(former, home), *([named] if named else [])}
    files = {of_file(path): new / path.relative_to(old.resolve()) for path in inside if path.is_relative_to(old.resolve())}
    old.rename(new)
    try:
        owners = {owner: of_file(path) for owner, path in files.items()}
        for owner, owner_now in owners.items():
            store.copy(home, owner, owner_now)
        write_row(row, values, Action.RENAMED, actor, home)
    except Exception:  # also of a database whose disk is full
        new.rename(old)
        raise
    for owner in (store.of_environment(former), *(owner for owner, now in owners.items() if now != owner)):  # equal if the folder is a link
        store.forget(home, owner)


def _usable(name: str) -> Environment:
    """Raises EnvironmentNotFound, and EnvironmentProblems if its file cannot be used."""
    environment = find(name)
    if environment.file_problems:
        message, hint = f"config/{name}/config.json cannot be used.", "fix the file, or PUT the configuration to replace it"
        raise EnvironmentProblems.of([Problem.error("name", "unusable_file", message, got=name, hint=hint)])
    return environment


def _keeps_its_runs(row: Environment, home: Home) -> None:
    """Raises EnvironmentProblems if the folder also holds what runs write, which would move with it, also while one trains."""
    output = row.config.get(OUTPUT)
    if isinstance(output, str) and _lies_in(folder_of(home, row.name), OUTPUT, output, home):
        message, hint = f"{OUTPUT} lies in the folder of the environment.", "choose another output_dir first, or copy the environment"
        raise EnvironmentProblems.of([Problem.error(OUTPUT, "inside_environment", message, got=output, hint=hint)])


def _is_free(target: str, option: str) -> None:
    """Raises EnvironmentProblems for an invalid name, EnvironmentExists for one that is taken."""
    if problem := name_problem(target, option):
        raise EnvironmentProblems.of([problem])
    if sync_from_disk(target, current_home()) is not None:
        raise EnvironmentExists(target)


def _paths_of_copy(values: Mapping[str, Any], name: str, target: str, home: Home) -> dict[str, str]:
    """The options of a copy that name files of its own: datasets and adapter file, and where a run writes."""
    found = {option: path for option, path in _paths_of_renamed(values, name, target, home).items() if option in OWN_FILES}
    kept = {option: path for option, path in found.items() if PurePath(path).name == OWN_FILES[option]}
    output = values.get(OUTPUT)
    if not isinstance(output, str) or not output:
        return kept
    path = PurePath(output)
    beside = str(path.with_name(target if path.name == name else f"{path.name}-{target}")) if path.name else ""
    is_allowed = beside and not isinstance(resolve(beside, OUTPUT, home=home, kind=LOCAL[OUTPUT].kind, writing=True), Problem)
    return {**kept, OUTPUT: beside if is_allowed and output != "~" else f"{OUTPUTS}/{target}"}


def _paths_of_renamed(values: Mapping[str, Any], name: str, target: str, home: Home) -> dict[str, str]:
    """Every option with a path into the folder of the environment -> its path in the renamed folder."""
    prefixes = (f"{name}/", f"{home.config.name}/{name}/", f"{folder_of(home, name)}/")
    given = {option: values.get(option) for option in LOCAL if option != OUTPUT}
    found = {}
    for option, path in given.items():
        prefix = next((one for one in prefixes if isinstance(path, str) and path.startswith(one)), None)
        if prefix is not None and isinstance(path, str) and _lies_in(folder_of(home, name), option, path, home):
            found[option] = f"{prefix[: -len(name) - 1]}{target}/{path[len(prefix) :]}"
    return found


def _lies_in(folder: Path, option: str, path: str, home: Home) -> bool:
    """Whether an option's path leads into a folder: a relative one may begin like it and lie below the home instead."""
    found = resolve(path, option, home=home, kind=LOCAL[option].kind, writing=LOCAL[option].writing)
    if isinstance(found, Problem):
        return False
    meant = found.path if found.exists or option not in OWN_FILES else new_file(path, home)
    return meant.resolve().is_relative_to(folder.resolve())


def _copy_file(source: Path, target: Path, home: Home) -> bool:
    """Copy a JSON file of an environment, with the secrets of a datasets file. Returns whether there is a readable one. Raises OSError."""
    text = read_text(home, source).text
    if text is None:
        return False
    if target.name == DATASETS_FILE:
        try:
            text = keep_text(write_json(revealed(parse_json(text), source, home)), target, home)
        except BadJson:
            pass  # It is copied as it is, for its owner to mend.
    write_own_text(target, text, home=home, is_new=True)
    return True


def _differing(source: Environment, row: Environment) -> tuple[Changed, ...]:
    return changes(source.config, {}, row.config)
