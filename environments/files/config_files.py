"""Environments as files: ``config/<name>/config.json`` and the datasets file beside it.

Files are written atomically, and read with the care that files edited by hand need. This module uses no database;
``environments/sync.py`` compares the files with the rows.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from environments.create.names import is_name
from environments.files.json_text import BadJson, parse_json, write_json
from environments.paths import Home
from trainer_engine.contract.atomic import sync_folder, write_atomically
from trainer_engine.contract.errors import Problem
from trainer_engine.contract.files import UnreadableFile, read_small

CONFIG_FILE = "config.json"
DATASETS_FILE = "multidatabackend.json"
LYCORIS_FILE = "lycoris_config.json"


@dataclass(frozen=True)
class TextFile:
    """The result of reading a text file, which may be missing or broken."""

    path: Path
    text: str | None
    """None if there is no file or it cannot be read as text."""
    sha256: str
    """Hash of the bytes, or a word for the error; empty without a file."""
    trouble: str = ""
    """Why the file cannot be read as text; empty if it can or does not exist."""


@dataclass(frozen=True)
class ConfigFile:
    """A ``config.json`` as read from disk."""

    file: TextFile
    values: Mapping[str, Any] | None
    """As written, names with or without dashes; None if the file is missing or not an object."""
    problem: Problem | None


def dashed(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values as in files and answers: every option with two dashes."""
    return {f"--{name}": value for name, value in values.items()}


def without_marks(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values without their export wrapper and without form fields such as ``__active_tab__``."""
    values = unwrapped(values)
    marks = {key for key in values if len(key.lstrip("-")) > 4 and key.lstrip("-").startswith("__") and key.endswith("__")}
    return {key: value for key, value in values.items() if key not in marks}


def unwrapped(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """The options of an exported configuration, ``{"_metadata": {...}, "config": {...}}``."""
    config = values.get("config")
    is_wrapper = isinstance(config, Mapping) and all(key == "config" or key.startswith("_") for key in values)
    return unwrapped(config) if is_wrapper and isinstance(config, Mapping) else values


def folder_of(home: Home, name: str) -> Path:
    """The folder of an environment's files."""
    return home.config / name


def read_text(home: Home, path: Path) -> TextFile:
    """Read a small text file. Never raises: errors are part of the result."""
    refusal = home.place_rule.refusal(path, writing=False)
    if refusal is not None:
        return TextFile(path, None, "outside", f"it {refusal.message}")
    real = Path(os.path.realpath(path))
    try:
        content = read_small(real)
    except (FileNotFoundError, NotADirectoryError):
        return TextFile(path, None, "")
    except UnreadableFile as error:
        return TextFile(path, None, f"unusable-{_changed_at(real)}", str(error))
    except OSError as error:
        return TextFile(path, None, f"unreadable-{error.errno}", error.strerror or "the file system refuses")
    sha256 = hashlib.sha256(content).hexdigest()
    try:
        return TextFile(path, content.decode("utf-8-sig"), sha256)
    except UnicodeDecodeError as error:
        return TextFile(path, None, sha256, f"byte {error.start} is not UTF-8")


def _changed_at(real: Path) -> int:
    """Modification time in nanoseconds; 0 if unknown."""
    try:
        return real.stat().st_mtime_ns
    except OSError:
        return 0


def read_config(home: Home, name: str) -> ConfigFile:
    """The configuration in an environment's file."""
    file = read_text(home, folder_of(home, name) / CONFIG_FILE)
    if file.text is None:
        return ConfigFile(file, None, _file_problem(file, file.trouble) if file.trouble else None)
    try:
        values = parse_json(file.text)
    except BadJson as error:
        return ConfigFile(file, None, _file_problem(file, str(error)))
    if not isinstance(values, dict):
        return ConfigFile(file, None, _file_problem(file, "it does not hold an object of option: value"))
    return ConfigFile(file, without_marks(values), None)


def _file_problem(file: TextFile, reason: str) -> Problem:
    where = f"config/{file.path.parent.name}/{file.path.name}"
    hint = "fix the file, or PUT the configuration to replace it"
    return Problem.error(
        CONFIG_FILE, "unreadable_file", f"{where} cannot be used: {reason}.", expected="a JSON object of option: value", hint=hint
    )


def write_config(home: Home, name: str, values: Mapping[str, Any]) -> str:
    """Write ``config.json``; its SHA-256. Raises OSError."""
    return write_text(home, folder_of(home, name) / CONFIG_FILE, write_json(dashed(values)))


def write_text(home: Home, path: Path, text: str, *, is_new: bool = False) -> str:
    """Write a file atomically and create its parent folders; returns the SHA-256. Symbolic links are followed and kept.

    Every file that a request writes passes here. With ``is_new`` an existing file is not replaced. Raises OSError, also for a closed
    place and for a file of another account.
    """
    real = writable(home, path)
    real.parent.mkdir(parents=True, exist_ok=True)
    content = text.encode("utf-8")
    write_atomically(real, content, is_new=is_new)
    return hashlib.sha256(content).hexdigest()


def writable(home: Home, path: Path) -> Path:
    """The real path of a file that may be written, replaced or removed. Raises PermissionError."""
    refusal = home.place_rule.refusal(path, writing=True)
    if refusal is not None:
        raise PermissionError(errno.EPERM, f"it {refusal.message}", str(path))
    real = Path(os.path.realpath(path))
    if os.geteuid() != 0 and real.exists() and real.stat().st_uid != os.geteuid():
        raise PermissionError(errno.EPERM, "it belongs to another account", str(path))
    return real


def keep_copy(path: Path) -> Path | None:
    """Keep a file that is about to be replaced as ``<name>.<n>.json`` next to it; None without a file. Raises OSError."""
    number = 1
    while (kept := path.with_name(f"{path.stem}.{number}{path.suffix}")).exists():
        number += 1
    try:
        os.link(path, kept)  # the old name stays until the new content replaces it, so that the file always exists
    except FileNotFoundError:
        return None
    sync_folder(path.parent)
    return kept


def remove_files(home: Home, name: str, *file_names: str) -> None:
    """Remove files of an environment, and its folder if it is then empty. Raises OSError."""
    folder = folder_of(home, name)
    for file_name in file_names:
        writable(home, folder)
        (folder / file_name).unlink(missing_ok=True)
    if folder.is_dir() and not folder.is_symlink() and not any(folder.iterdir()):
        folder.rmdir()


def names_on_disk(home: Home) -> list[str]:
    """Every folder below ``config/`` that holds a ``config.json`` and can name an environment."""
    try:
        entries = sorted(entry.name for entry in os.scandir(home.config) if entry.is_dir())
    except OSError:
        return []
    return [name for name in entries if is_name(name) and (home.config / name / CONFIG_FILE).is_file()]
