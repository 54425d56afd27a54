"""What every change of an environment does: one transaction over the row, its revision, its secrets and its files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from django.db import transaction

from environments.errors import EnvironmentExists, EnvironmentNotFound, EnvironmentProblems, FilesNotWritable
from environments.files.config_files import DATASETS_FILE, read_config, write_config
from environments.files.datasets_file import OPTION, destination
from environments.files.own_files import replace_problem, write_own_text
from environments.home import current_home
from environments.models import Environment
from environments.paths import Home
from environments.secrets.datasets import keep_text
from environments.secrets.store import keep_secrets
from environments.sync import record, remember_files
from trainer_engine.contract.errors import Problem


@contextmanager
def change() -> Iterator[Home]:
    """A transaction that is rolled back if a file cannot be written. Raises FilesNotWritable."""
    try:
        with transaction.atomic():
            yield current_home()
    except OSError as error:
        raise FilesNotWritable(error) from error


def locked(name: str) -> Environment:
    """The row, locked until the transaction ends. Raises EnvironmentNotFound if it was deleted in the meantime."""
    row = Environment.objects.select_for_update().filter(name=name).first()
    if row is None:
        raise EnvironmentNotFound(name)
    return row


def new_row(name: str, **values: Any) -> Environment:
    """A new row, in a transaction. Raises EnvironmentExists if another request was first."""
    row, is_new = Environment.objects.get_or_create(name=name, defaults=values)
    if not is_new:
        raise EnvironmentExists(name)
    return row


def write_datasets(row: Environment, config: Mapping[str, Any], text: str, home: Home) -> None:
    """Write the datasets file that ``config`` names, and store its secrets. ``row`` still has the options before the change.

    Raises EnvironmentProblems for a place that may not be written, and OSError.
    """
    path = destination(config.get(OPTION, ""), OPTION, home)
    if isinstance(path, Problem):
        raise EnvironmentProblems.of([path])
    was_named = row.config.get(OPTION) == config.get(OPTION)
    problem = replace_problem(path, OPTION, name=row.name, usual=DATASETS_FILE, home=home, may_edit=was_named)
    if problem is not None:
        raise EnvironmentProblems.of([problem])
    write_own_text(path, keep_text(text, path, home), home=home, is_new=not path.exists())


def record_datasets(row: Environment, given: str, action: str, actor: str, home: Home) -> None:
    """Store that ``data_backend_config`` names a datasets file that was written, and a revision."""
    if row.config.get(OPTION) != given:
        row.config = {**row.config, OPTION: given}
        write_config(home, row.name, row.config)
    remember_files(row, home)
    row.save()
    record(row, action, actor, home)


def write_own(path: Path, option: str, text: str, name: str, usual: str, home: Home) -> None:
    """Write a file that is new or belongs to the environment ``name``. Raises EnvironmentProblems for other files, and OSError."""
    problem = replace_problem(path, option, name=name, usual=usual, home=home)
    if problem is not None:
        raise EnvironmentProblems.of([problem])
    write_own_text(path, text, home=home, is_new=not path.exists())


def write_row(row: Environment, values: dict[str, Any], action: str, actor: str, home: Home) -> None:
    """Store values in row and file, their secrets in the secret store, and a revision with the text of an unusable file."""
    broken = read_config(home, row.name).file.text if row.file_problems else None
    row.config, row.file_problems = keep_secrets(home, row.name, values), []
    write_config(home, row.name, row.config)
    remember_files(row, home)
    row.save()
    record(row, action, actor, home, replaced_text=broken)
