"""The secret store: ``state/secrets/<kind>/<name>.json``, one file per owner, readable by this account only.

A file maps an option to its full text. Everywhere else ``***`` stands for the secrets; ``config/secrets.py`` puts them back.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from environments.paths import Home
from trainer_engine.config.options.secrets import hide_options, reveal_options, secrets_of
from trainer_engine.contract.atomic import write_atomically
from trainer_engine.contract.files import read_document

FOLDER = "secrets"
FOLDER_MODE, FILE_MODE = 0o700, 0o600
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Owner:
    """Whose secrets they are. The name is valid: an environment, a job's id, or a stored list of webhooks."""

    kind: str
    name: str

    def file(self, home: Home) -> Path:
        return home.state / FOLDER / self.kind / f"{self.name}.json"


def of_environment(name: str) -> Owner:
    return Owner("environments", name)


def of_job(job_id: object) -> Owner:
    return Owner("jobs", str(job_id))


def of_webhook(name: str) -> Owner:
    return Owner("webhooks", name)


def read(home: Home, owner: Owner) -> dict[str, str]:
    """Option -> text; empty if nothing is stored or it cannot be read."""
    path = owner.file(home)
    try:
        document = read_document(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        logger.warning("the secrets in %s cannot be read: %s", path, type(error).__name__)
        return {}
    return {str(option): str(text) for option, text in document.items()} if isinstance(document, dict) else {}


def write(home: Home, owner: Owner, secrets: Mapping[str, str]) -> None:
    """Replace the stored secrets; an empty mapping deletes the file. Raises OSError."""
    if not secrets:
        forget(home, owner)
        return
    path = owner.file(home)
    for folder in (path.parents[1], path.parent):
        folder.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
        folder.chmod(FOLDER_MODE)  # mkdir applies the umask, and an older folder keeps its mode
    write_atomically(path, json.dumps(dict(secrets), ensure_ascii=False).encode(), mode=FILE_MODE)


def copy(home: Home, source: Owner, target: Owner) -> None:
    """Copy the secrets of one owner to another. Raises OSError."""
    write(home, target, read(home, source))


def forget(home: Home, owner: Owner) -> None:
    """Delete the secrets of an owner. Raises OSError."""
    owner.file(home).unlink(missing_ok=True)


def with_secrets(home: Home, name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values with each ``***`` replaced by the environment's stored secret."""
    return reveal_options(values, read(home, of_environment(name)))


def keep_secrets(home: Home, name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Store the secrets of an environment's configuration; returns the values with secrets hidden. Raises OSError."""
    full = with_secrets(home, name, values)
    found = secrets_of(full)
    if found != read(home, of_environment(name)):
        write(home, of_environment(name), found)
    return hide_options(full)


def holds_the_same(home: Home, name: str, config: Mapping[str, Any], values: Mapping[str, Any]) -> bool:
    """Whether an environment's stored configuration and secrets equal these values, in which nothing is hidden."""
    stored, meant = read(home, of_environment(name)), secrets_of(values)
    is_same = stored.keys() == meant.keys() and all(_same_json(stored[option], meant[option]) for option in stored)
    return is_same and dict(config) == hide_options(values)


def _same_json(one: str, other: str) -> bool:
    try:
        return bool(read_document(one) == read_document(other))
    except ValueError:
        return one == other
