"""The file that ``--config`` names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from environments.files.config_files import without_marks
from environments.files.json_text import BadJson, parse_json
from trainer_engine.contract.files import read_small


class UnreadableConfig(Exception):
    """There is no configuration in the file; the message says why."""


def read_config(path: Path) -> dict[str, Any]:
    """Option -> value, names as written. Raises UnreadableConfig."""
    try:
        document = parse_json(read_small(path))
    except OSError as error:
        raise UnreadableConfig(f"{path} cannot be read: {error.strerror or error}.") from error
    except BadJson as error:
        raise UnreadableConfig(f"{path} is {error}.") from error
    if not isinstance(document, dict):
        raise UnreadableConfig(f"{path} must hold a JSON object of options, not a {type(document).__name__}.")
    return without_marks(document)


def home_of_config(path: Path, home: Path | None) -> Path:
    """The folder that relative paths start from: as named, else the one whose ``config/<environment>/`` holds the file, else here."""
    if home is not None:
        return home.expanduser().absolute()
    folder = path.expanduser().absolute().parent
    if folder.parent.name == "config":
        return folder.parent.parent
    return Path.cwd()
