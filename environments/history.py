"""The revisions of environments: listed, compared and brought back. They outlive their environment."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from environments.create.names import is_name
from environments.errors import EnvironmentNotFound, EnvironmentProblems, RevisionNotFound
from environments.files.adapter_file import OPTION as ADAPTER_OPTION
from environments.files.adapter_file import find_adapter_file
from environments.files.config_files import LYCORIS_FILE
from environments.files.own_files import replace_problem
from environments.home import current_home
from environments.models import Action, Environment, Revision
from environments.paths import Home
from environments.resolve.changes import Changed
from environments.resolve.checks import CheckedConfig, check_config
from environments.secrets.datasets import shown_text
from environments.secrets.store import with_secrets
from environments.sync import adapter_text, shown_datasets, sync_from_disk
from environments.writing import change, locked, new_row, write_datasets, write_own, write_row
from trainer_engine.config.options.secrets import hidden_problems, hide_options

MOST_LISTED = 1000
CONTENTS = ("config", "datasets_text", "adapter_text", "replaced_text")
"""Fields that may be megabytes long each; a list leaves them out."""
MOST_LINES = 1000
"""Lines of a text that a comparison reads: the time that it takes grows with their square."""
CUT = f"(compared up to line {MOST_LINES})"


@dataclass(frozen=True)
class Comparison:
    """Two revisions of an environment."""

    older: Revision
    newer: Revision
    changed: tuple[Changed, ...]
    """Options whose value differs, in order of their names."""
    datasets: tuple[str, ...]
    """The lines of a unified diff of the datasets files; empty if they are equal."""
    adapter: tuple[str, ...]
    """The same for the adapter files."""


@dataclass(frozen=True)
class Restored:
    """An environment after it was brought back."""

    environment: Environment
    left_out: tuple[str, ...]
    """Options with a secret that is no longer stored. They are not set."""
    checked: CheckedConfig


def revisions(name: str) -> list[Revision]:
    """The newest revisions of a name without their contents, newest first, also of a deleted environment. Raises EnvironmentNotFound."""
    sync_from_disk(name, current_home())
    found = list(Revision.objects.filter(environment_name=name).defer(*CONTENTS).order_by("-number")[:MOST_LISTED])
    if not found:
        raise EnvironmentNotFound(name)
    return found


def find_revision(name: str, number: int) -> Revision:
    """One revision. Raises EnvironmentNotFound, RevisionNotFound."""
    newest = revisions(name)[0]
    found = Revision.objects.filter(environment_name=name, number=number).first()
    if found is None:
        raise RevisionNotFound(name, number, newest.number)
    return found


def compare(name: str, older: int | None = None, newer: int | None = None) -> Comparison:
    """Compare two revisions: the newest if ``newer`` is None, and the one before it if ``older`` is None.

    Raises EnvironmentNotFound, RevisionNotFound.
    """
    after = revisions(name)[0] if newer is None else find_revision(name, newer)
    before = find_revision(name, max(after.number - 1, 1) if older is None else older)
    names = (f"r{before.number}", f"r{after.number}")
    return Comparison(
        older=before,
        newer=after,
        changed=options_between(before.config, after.config),
        datasets=lines_between(shown_text(before.datasets_text or ""), shown_text(after.datasets_text or ""), *names),
        adapter=lines_between(before.adapter_text or "", after.adapter_text or "", *names),
    )


def lines_between(one: str, other: str, name: str, other_name: str) -> tuple[str, ...]:
    """The lines of a unified diff of two texts, which are compared up to line ``MOST_LINES``; none if they are equal."""
    lines, others = one.splitlines(), other.splitlines()
    found = tuple(difflib.unified_diff(lines[:MOST_LINES], others[:MOST_LINES], name, other_name, lineterm=""))
    return (*found, CUT) if max(len(lines), len(others)) > MOST_LINES and lines != others else found


def options_between(one: Mapping[str, Any], other: Mapping[str, Any]) -> tuple[Changed, ...]:
    """The options whose values differ, in order of their names. Secrets are hidden in both."""
    first, second = hide_options(one), hide_options(other)
    names = sorted(option for option in {*first, *second} if first.get(option) != second.get(option))
    return tuple(Changed(option, first.get(option), second.get(option)) for option in names)


def restore(name: str, number: int, *, actor: str) -> Restored:
    """Give an environment the options, datasets and adapter file of a revision; a deleted one is created again.

    The secrets that are stored for it stay. Raises EnvironmentNotFound, RevisionNotFound, EnvironmentExists, EnvironmentProblems,
    FilesNotWritable.
    """
    revision, home = find_revision(name, number), current_home()
    values = with_secrets(home, name, revision.config)
    left_out = tuple(sorted(option for option, value in values.items() if hidden_problems({option: value})))
    checked = check_config({option: value for option, value in values.items() if option not in left_out}, home)
    if checked.errors:
        raise EnvironmentProblems.of(checked.errors)
    is_there = sync_from_disk(name, home) is not None
    with change() as home:
        row = locked(name) if is_there else _new_row(name)
        row.description, row.tags = revision.description, revision.tags
        _write_files(row, revision, checked.values, home)
        write_row(row, checked.values, Action.RESTORED, actor, home)
    return Restored(row, left_out, checked)


def _new_row(name: str) -> Environment:
    if not is_name(name):
        raise EnvironmentNotFound(name)
    return new_row(name)


def _write_files(row: Environment, revision: Revision, values: Mapping[str, Any], home: Home) -> None:
    """Write the datasets and adapter file of a revision, where they differ from those that are there. Raises OSError."""
    meant = Environment(name=row.name, config=dict(values))
    datasets, adapter = revision.datasets_text, revision.adapter_text
    adapter = None if adapter == adapter_text(meant, home) else adapter
    path = find_adapter_file(values, row.name, home).path
    if adapter is not None and (problem := replace_problem(path, ADAPTER_OPTION, name=row.name, usual=LYCORIS_FILE, home=home)):
        raise EnvironmentProblems.of([problem])  # before the datasets file is replaced
    if datasets is not None and shown_text(datasets) != shown_datasets(meant, home):
        write_datasets(row, values, shown_text(datasets), home)
    if adapter is not None:
        write_own(path, ADAPTER_OPTION, adapter, row.name, LYCORIS_FILE, home)
