"""Synchronises rows with files: manual edits, folders made by hand, and folders whose database was lost.

Every access to an environment passes here first. It hashes the files, a few kilobytes, because modification times do not change
when a file is replaced within the resolution of the clock.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from pathlib import Path
from typing import Any

from django.db import transaction

from environments.create.names import is_name
from environments.files.adapter_file import find_adapter_file, uses_lycoris
from environments.files.broken_text import without_secrets_in_text
from environments.files.config_files import DATASETS_FILE, ConfigFile, TextFile, names_on_disk, read_config, read_text, write_config
from environments.files.datasets_file import locate
from environments.files.json_text import BadJson, parse_json, write_json
from environments.models import Action, Environment, Revision
from environments.paths import Home
from environments.resolve.checks import CheckedConfig, check_config
from environments.secrets.datasets import shown_text
from environments.secrets.store import keep_secrets
from trainer_engine.config.datasets.names import are_datasets
from trainer_engine.config.options.secrets import hide_options
from trainer_engine.contract.errors import Problem, limited

MANUAL_EDIT = "hand"
logger = logging.getLogger(__name__)


def sync_from_disk(name: str, home: Home) -> Environment | None:
    """The environment with this name, updated from its files; None if there is neither row nor folder."""
    if not is_name(name):
        return None
    file = read_config(home, name)
    row = Environment.objects.filter(name=name).first()
    if row is None:
        return _adopt(name, home) if file.file.sha256 else None
    datasets = datasets_text(row.config, home)
    if _has_changed(row, file, datasets):
        with transaction.atomic():
            row = Environment.objects.select_for_update().filter(name=name).first()
            if row is not None:
                # The file may have been replaced before the lock was taken, by a change that this row already holds.
                _update(row, read_config(home, name), home)
    return row


def sync_all_from_disk(home: Home) -> list[Environment]:
    """Every environment, updated from its files, in order of their names."""
    found = (sync_from_disk(name, home) for name in sorted(names_taken(home)))
    return [environment for environment in found if environment is not None]


def names_taken(home: Home) -> set[str]:
    """The names of all environments, from rows and folders."""
    return {*Environment.objects.values_list("name", flat=True), *names_on_disk(home)}


def datasets_text(config: dict[str, object], home: Home) -> TextFile | None:
    """The datasets file of a configuration, or None."""
    path = locate(config, home).path
    file = read_text(home, path) if path else None
    return file if file and file.sha256 else None


def shown_datasets(row: Environment, home: Home) -> str | None:
    """The text of an environment's datasets file with its secrets hidden; None if there is no file or it is not a datasets file.

    An option can name any file below a root, so a file outside the environment's folder is shown only if it holds datasets.
    """
    file = datasets_text(row.config, home)
    if file is None or file.text is None:
        return None
    if file.path == own_datasets_file(row.name, home):
        return shown_text(file.text)
    try:
        return shown_text(file.text) if are_datasets(parse_json(file.text)) else None
    except BadJson:
        return None


def adapter_text(row: Environment, home: Home) -> str | None:
    """The adapter file of an environment that trains a LyCORIS, as JSON; None if there is none."""
    found = find_adapter_file(row.config, row.name, home) if uses_lycoris(row.config) else None
    return None if found is None or found.document is None else write_json(found.document)


def own_datasets_file(name: str, home: Home) -> Path:
    """The path of an environment's own datasets file."""
    return (home.config / name / DATASETS_FILE).resolve()


def record(row: Environment, action: str, actor: str, home: Home, *, replaced_text: str | None = None) -> Revision:
    """Store a revision of the environment, in the transaction of the change."""
    return Revision.objects.create(
        environment_name=row.name,
        number=(newest_revision(row.name) or 0) + 1,
        action=action,
        actor=actor,
        description=row.description,
        tags=row.tags,
        config=row.config,
        datasets_text=shown_datasets(row, home),
        adapter_text=adapter_text(row, home),
        replaced_text=without_secrets_in_text(replaced_text),
    )


def newest_revision(name: str) -> int | None:
    """The number of the last revision of a name; None for a new one."""
    return Revision.objects.filter(environment_name=name).order_by("-number").values_list("number", flat=True).first()


def remember_files(row: Environment, home: Home) -> None:
    """Store the hashes of the files, so that the next difference counts as a manual edit."""
    row.config_sha256 = read_config(home, row.name).file.sha256
    datasets = datasets_text(row.config, home)
    row.datasets_sha256 = datasets.sha256 if datasets else ""


def unusable(name: str, file: ConfigFile, checked: CheckedConfig | None) -> list[Problem]:
    """Why a ``config.json`` cannot be used; empty if it can."""
    if file.problem is not None:
        return [file.problem]
    return limited(checked.errors) if checked else []


def _has_changed(row: Environment, file: ConfigFile, datasets: TextFile | None) -> bool:
    return _is_exposed(row) or file.file.sha256 != row.config_sha256 or (datasets.sha256 if datasets else "") != row.datasets_sha256


def _is_exposed(row: Environment) -> bool:
    """Whether an older version stored something in the row that is secret now."""
    return hide_options(row.config) != row.config


def _hide_what_is_exposed(row: Environment, home: Home, *, is_unchanged: bool) -> None:
    """Move secrets of a row to the secret store, and rewrite its file if that is unchanged."""
    try:
        row.config = keep_secrets(home, row.name, row.config)
        if is_unchanged:
            row.config_sha256 = write_config(home, row.name, row.config)
    except OSError as error:
        logger.warning("secrets of %s stay in its file: %s", row.name, error.strerror)


def _update(row: Environment, file: ConfigFile, home: Home) -> None:
    """Update a locked row from its files."""
    action = _update_config(row, file, home)
    datasets = datasets_text(row.config, home)
    if (datasets.sha256 if datasets else "") != row.datasets_sha256:
        row.datasets_sha256 = datasets.sha256 if datasets else ""
        action = action or Action.DATASETS_EDITED
    row.save()
    if action:
        record(row, action, MANUAL_EDIT, home)


def _update_config(row: Environment, file: ConfigFile, home: Home) -> str | None:
    """Update a row from ``config.json``. Returns the action, None if the row is unchanged."""
    is_unchanged = file.file.sha256 == row.config_sha256
    if _is_exposed(row):
        _hide_what_is_exposed(row, home, is_unchanged=is_unchanged)
    if is_unchanged:
        return None
    if not file.file.sha256 and file.problem is None:
        # NOTE: only the API and the admin delete environments; a missing file is restored from the row.
        with suppress(OSError):
            row.config_sha256 = write_config(home, row.name, row.config)
            row.file_problems = []
        return None
    row.config_sha256 = file.file.sha256
    checked = check_config(file.values, home) if file.values is not None else None
    problems = unusable(row.name, file, checked)
    row.file_problems = [problem.as_dict() for problem in problems]
    if problems or checked is None:
        return None
    _store_values(row, checked.values, home)
    return Action.HAND_EDITED


def _store_values(row: Environment, values: dict[str, Any], home: Home) -> bool:
    """Store the values of a file in the row and move their secrets to the secret store. Returns whether that succeeded."""
    try:
        row.config = keep_secrets(home, row.name, values)
        if row.config != values:
            row.config_sha256 = write_config(home, row.name, row.config)
    except OSError as error:
        # The disk is full or read-only: the row hides the secrets, the file stays as it is, and the next access tries again.
        logger.warning("secrets of %s stay in its file: %s", row.name, error.strerror)
        row.config, row.config_sha256 = hide_options(values), ""
        return False
    return True


def _adopt(name: str, home: Home) -> Environment | None:
    """Create the row of a folder without one; None if the environment was deleted in the meantime.

    A deletion removes the files before its transaction ends, so a file that exists inside this transaction belongs to no deleted row.
    """
    with transaction.atomic():
        file = read_config(home, name)
        if not file.file.sha256:
            return Environment.objects.filter(name=name).first()
        checked = check_config(file.values, home) if file.values is not None else None
        problems = unusable(name, file, checked)
        row, is_new = Environment.objects.get_or_create(
            name=name,
            defaults={
                "config_sha256": file.file.sha256,
                "file_problems": [problem.as_dict() for problem in problems],
            },
        )
        if is_new:
            taken = checked is None or _store_values(row, checked.values, home)
            remember_files(row, home)
            if not taken:
                row.config_sha256 = ""
            row.save()
            record(row, Action.ADOPTED, MANUAL_EDIT, home)
    return row
