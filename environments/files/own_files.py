"""Which existing files the server replaces: an environment's own, and those that it wrote and that are unchanged since.

Adapter and datasets files may be in any writable place. A request never replaces a file there that is not the server's.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from environments.files.config_files import CONFIG_FILE, DATASETS_FILE, LYCORIS_FILE, read_text, write_text
from environments.files.json_text import BadJson, parse_json
from environments.paths import Home, outside
from trainer_engine.contract.atomic import PRIVATE_FOLDER_MODE, PRIVATE_MODE, write_atomically
from trainer_engine.contract.errors import Problem
from trainer_engine.contract.files import read_document

FOLDER = "written"
WEBHOOKS_FOLDER = "webhooks"
KEPT_NAMES = {LYCORIS_FILE: (CONFIG_FILE, DATASETS_FILE), DATASETS_FILE: (CONFIG_FILE, LYCORIS_FILE)}
"""Usual name of a file -> names in an environment's folder that are reserved for other files."""


def replace_problem(path: Path, option: str, *, name: str, usual: str, home: Home, may_edit: bool = False) -> Problem | None:
    """Why the file at ``path`` is not written for the environment ``name``; None if it is new or may be replaced.

    ``usual`` is the name of such a file in an environment's folder. With ``may_edit`` a datasets file elsewhere may be replaced
    whoever wrote it, because the environment names it, it is shown for editing, and its text is kept.
    """
    refusal = home.place_rule.refusal(path, writing=True)
    if refusal is not None:
        return outside(str(path), option, refusal)
    real = Path(os.path.realpath(path))
    if real.suffix != ".json":
        message = f"{path} does not end in .json."
        return Problem.error(option, "not_json", message, got=str(path), expected="a path that ends in .json")
    owner = name if real.parent == Path(os.path.realpath(home.config / name)) else _environment_of(real, home)
    if owner is not None and real.name in KEPT_NAMES[usual]:
        message = f"{path} is the name of another file of the environment {owner!r}."
        return Problem.error(option, "config_file", message, got=str(path), expected=f"another name, such as {usual}")
    if not os.path.lexists(real):
        return None
    if owner is not None:
        is_own = owner == name and (real.name == usual or _holds(real, usual, home))
    else:
        is_own = _is_unchanged(real, home) or (may_edit and _holds(real, usual, home))
    if is_own:
        return None
    message = f"{path} already exists and does not belong to the environment {name!r}: it is not overwritten."
    hint = f"name a file that does not exist, or {name}/{usual}; use an editor for files that you made yourself"
    return Problem.error(option, "foreign_file", message, got=str(path), expected="a new file, or the environment's own", hint=hint)


def write_own_text(path: Path, text: str, *, home: Home, is_new: bool) -> None:
    """Write an adapter or datasets file that ``replace_problem`` allows. Raises OSError.

    With ``is_new`` a file that has appeared in the meantime is not replaced.
    """
    digest = write_text(home, path, text, is_new=is_new)
    real = Path(os.path.realpath(path))
    if _environment_of(real, home) is None:
        record = _record(real, home)
        record.parent.mkdir(mode=PRIVATE_FOLDER_MODE, parents=True, exist_ok=True)
        write_atomically(record, json.dumps({"path": str(real), "sha256": digest}).encode(), mode=PRIVATE_MODE)


def _environment_of(real: Path, home: Home) -> str | None:
    """The environment whose folder holds a file; stored webhooks have their own folder too."""
    config = Path(os.path.realpath(home.config))
    parts = real.relative_to(config).parts if real.is_relative_to(config) else ()
    is_one = len(parts) > 1 and (parts[0] == WEBHOOKS_FOLDER or (config / parts[0] / CONFIG_FILE).exists())
    return parts[0] if is_one else None


def _record(real: Path, home: Home) -> Path:
    return home.state / FOLDER / f"{hashlib.sha256(str(real).encode()).hexdigest()[:32]}.json"


def _is_unchanged(real: Path, home: Home) -> bool:
    try:
        noted = read_document(_record(real, home).read_bytes())
    except (OSError, ValueError):
        return False
    return bool(noted == {"path": str(real), "sha256": read_text(home, real).sha256})


def _holds(real: Path, usual: str, home: Home) -> bool:
    """Whether the content of a file is of the kind with this usual name."""
    try:
        document = parse_json(read_text(home, real).text or "")
    except BadJson:
        return False
    if usual == LYCORIS_FILE:
        return isinstance(document, dict) and isinstance(document.get("algo"), str)
    return isinstance(document, list) and bool(document) and all(map(_is_dataset, document))


def _is_dataset(entry: object) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("id"), str) and bool({"dataset_type", "instance_data_dir"} & entry.keys())
