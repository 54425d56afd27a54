"""Rows learn what files say: edits by hand, folders made by hand, folders whose database was lost.

Every look at an environment passes here first. Reading a few kilobytes and hashing them is cheaper than trusting times of
modification, which do not change when a file is replaced within the clock's grain.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from pathlib import Path
from typing import Any

from django.db import transaction

from environments.create.names import is_name
from environments.files.broken_text import without_secrets_in_text
from environments.files.config_files import DATASETS_FILE, ConfigFile, TextFile, names_on_disk, read_config, read_text, write_config
from environments.files.datasets_file import locate
from environments.files.json_text import BadJson, parse_json
from environments.models import Action, Environment, Revision
from environments.paths import Home
from environments.resolve.checks import CheckedConfig, check_config
from environments.secrets.options import keep_secrets
from trainer_engine.config.datasets.names import are_datasets
from trainer_engine.config.options.secrets import hide_options
from trainer_engine.contract.errors import Problem, limited

MANUAL_EDIT = "hand"
logger = logging.getLogger(__name__)


def sync_from_disk(name: str, home: Home) -> Environment | None:
    """The environment called so, with what its files say now; None where there is neither row nor folder."""
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
                # What was read before the lock may have been replaced since, by a change that this row holds already.
                _take_in(row, read_config(home, name), home)
    return row


def sync_all_from_disk(home: Home) -> list[Environment]:
    """Every environment, as ``sync_from_disk`` gives it, in the order of their names."""
    found = (sync_from_disk(name, home) for name in sorted(names_taken(home)))
    return [environment for environment in found if environment is not None]


def names_taken(home: Home) -> set[str]:
    """The name of every environment, whether a row or a folder holds it."""
    return {*Environment.objects.values_list("name", flat=True), *names_on_disk(home)}


def datasets_text(config: dict[str, object], home: Home) -> TextFile | None:
    """The datasets file of a configuration; None where it has none."""
    path = locate(config, home).path
    file = read_text(home, path) if path else None
    return file if file and file.sha256 else None


def shown_datasets(row: Environment, home: Home) -> str | None:
    """The text of an environment's datasets file where it may be shown; None where there is no file, or it is something else.

    An option can name any file below a root. What lies elsewhere than in the environment's folder is shown where it is a datasets file.
    """
    file = datasets_text(row.config, home)
    if file is None or file.text is None:
        return None
    if file.path == own_datasets_file(row.name, home):
        return file.text
    try:
        return file.text if are_datasets(parse_json(file.text)) else None
    except BadJson:
        return None


def own_datasets_file(name: str, home: Home) -> Path:
    """Where an environment's own datasets file lies."""
    return (home.config / name / DATASETS_FILE).resolve()


def record(row: Environment, action: str, actor: str, home: Home, *, replaced_text: str | None = None) -> Revision:
    """Keep the environment as it is now. Inside the transaction of the change."""
    return Revision.objects.create(
        environment_name=row.name,
        number=(newest_revision(row.name) or 0) + 1,
        action=action,
        actor=actor,
        description=row.description,
        tags=row.tags,
        config=row.config,
        datasets_text=shown_datasets(row, home),
        replaced_text=without_secrets_in_text(replaced_text),
    )


def newest_revision(name: str) -> int | None:
    """The number of the last revision of a name; None for a new one."""
    return Revision.objects.filter(environment_name=name).order_by("-number").values_list("number", flat=True).first()


def remember_files(row: Environment, home: Home) -> None:
    """Note what the files hold now, so that the next difference is an edit by hand."""
    row.config_sha256 = read_config(home, row.name).file.sha256
    datasets = datasets_text(row.config, home)
    row.datasets_sha256 = datasets.sha256 if datasets else ""


def unusable(name: str, file: ConfigFile, checked: CheckedConfig | None) -> list[Problem]:
    """Why a ``config.json`` cannot be used; empty where it can."""
    if file.problem is not None:
        return [file.problem]
    return limited(checked.errors) if checked else []


def _has_changed(row: Environment, file: ConfigFile, datasets: TextFile | None) -> bool:
    return _is_exposed(row) or file.file.sha256 != row.config_sha256 or (datasets.sha256 if datasets else "") != row.datasets_sha256


def _is_exposed(row: Environment) -> bool:
    """Whether an older version stored something in the row and its file that is secret now."""
    return hide_options(row.config) != row.config


def _hide_what_is_exposed(row: Environment, home: Home, *, is_unchanged: bool) -> None:
    """Move secrets of a row into the store, and write its file anew where that still says the same."""
    try:
        row.config = keep_secrets(home, row.name, row.config)
        if is_unchanged:
            row.config_sha256 = write_config(home, row.name, row.config)
    except OSError as error:
        logger.warning("secrets of %s stay in its file: %s", row.name, error.strerror)


def _take_in(row: Environment, file: ConfigFile, home: Home) -> None:
    """Bring a row up to date with its files; the row is locked."""
    action = _take_in_config(row, file, home)
    datasets = datasets_text(row.config, home)
    if (datasets.sha256 if datasets else "") != row.datasets_sha256:
        row.datasets_sha256 = datasets.sha256 if datasets else ""
        action = action or Action.DATASETS_EDITED
    row.save()
    if action:
        record(row, action, MANUAL_EDIT, home)


def _take_in_config(row: Environment, file: ConfigFile, home: Home) -> str | None:
    """What was done to the row; None where it stays as it was."""
    is_unchanged = file.file.sha256 == row.config_sha256
    if _is_exposed(row):
        _hide_what_is_exposed(row, home, is_unchanged=is_unchanged)
    if is_unchanged:
        return None
    if not file.file.sha256 and file.problem is None:
        # NOTE: only the API and the admin delete environments; a file that is gone comes back from the row.
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
    _take_values(row, checked.values, home)
    return Action.HAND_EDITED


def _take_values(row: Environment, values: dict[str, Any], home: Home) -> bool:
    """Values of a file; secrets in them move into the store, and the file is written anew without them. Whether that could be done."""
    try:
        row.config = keep_secrets(home, row.name, values)
        if row.config != values:
            row.config_sha256 = write_config(home, row.name, row.config)
    except OSError as error:
        # The disk is full, or not ours to write: the row shows nothing, the file stays as it is, and the next look tries again.
        logger.warning("secrets of %s stay in its file: %s", row.name, error.strerror)
        row.config, row.config_sha256 = hide_options(values), ""
        return False
    return True


def _adopt(name: str, home: Home) -> Environment | None:
    """Make the row of a folder that has none; None if the environment was deleted meanwhile.

    A deletion removes the files before its transaction ends, so a file that is there inside this one belongs to no deleted row.
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
            taken = checked is None or _take_values(row, checked.values, home)
            remember_files(row, home)
            if not taken:
                row.config_sha256 = ""
            row.save()
            record(row, Action.ADOPTED, MANUAL_EDIT, home)
    return row
