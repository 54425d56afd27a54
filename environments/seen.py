"""What a form was opened with: words that change with what is stored, so that a save takes nothing back that others have saved since.

A form sends all of its fields, also those that somebody else has changed in the meantime.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256

from environments.errors import EnvironmentChanged
from environments.files.adapter_file import OPTION as ADAPTER
from environments.files.adapter_file import find_adapter_file
from environments.files.datasets_file import OPTION as DATASETS
from environments.files.json_text import write_json
from environments.models import Environment
from environments.paths import Home
from environments.sync import shown_datasets


@dataclass(frozen=True)
class Seen:
    """A word for each part of an environment that a form shows; empty for what it does not show, which is not compared."""

    options: str = ""
    """Configuration, description and tags."""
    datasets: str = ""
    adapter: str = ""


SEEN_NOTHING = Seen()


def version_of(document: object) -> str:
    """A word that changes with a document."""
    return sha256(write_json(document).encode()).hexdigest()[:16]


def options_version(row: Environment) -> str:
    return version_of([row.config, row.description, row.tags])


def datasets_version(row: Environment, home: Home) -> str:
    """Of the text of the datasets file."""
    return version_of(shown_datasets(row, home))


def adapter_version(row: Environment, home: Home) -> str:
    """Of the content of the adapter file."""
    return version_of(find_adapter_file(row.config, row.name, home).document)


def refuse_changed(row: Environment, seen: Seen, home: Home) -> None:
    """Raises EnvironmentChanged if a part that was seen is another one now. Call it with a locked row, in the transaction of the change."""
    for option, what in _changed(row, seen, home):
        raise EnvironmentChanged(option, what)


def _changed(row: Environment, seen: Seen, home: Home) -> Iterator[tuple[str, str]]:
    if seen.options and seen.options != options_version(row):
        yield "name", "The environment has"
    if seen.datasets and seen.datasets != datasets_version(row, home):
        yield DATASETS, "The datasets file has"
    if seen.adapter and seen.adapter != adapter_version(row, home):
        yield ADAPTER, "The adapter file has"
