"""The datasets file of an environment as forms: one for each of its sets, and one for a set that is to be added."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from environments.files.datasets_file import unwrapped_datasets
from environments.files.json_text import BadJson, parse_json
from environments.home import current_home
from environments.images.datasets import TEXT_FILES, OpenDataset, datasets_of
from environments.models import Environment
from environments.sync import datasets_text, shown_datasets
from trainer_engine.config.dataset_tables import source_specs
from trainer_engine.config.datasets.names import SETS
from trainer_engine.contract.errors import Problem
from training.pages.dataset_fields import FieldRow, changed_entry, field_rows, kind_of, takes_sources

NEW = "new"
"""The position of a set that is to be added, in the names of its fields."""
LOCAL = "local"
LONGEST_ID = 100


@dataclass(frozen=True)
class ShownSet:
    """A dataset of the file, or one that is to be added."""

    position: int | str
    id: str
    kind: str
    source: str
    """Empty for a kind whose files lie in folders of this machine alone."""
    rows: list[FieldRow]
    problems: list[Problem]
    """Errors and warnings."""
    opened: OpenDataset | None = None
    """None if its images lie in no folder of this machine."""


def document_of(environment: Environment) -> list[dict[str, Any]] | None:
    """The entries of the datasets file with secrets hidden, none without a file; None if they cannot be shown as forms."""
    text = shown_datasets(environment, current_home())
    if text is None:
        file = datasets_text(environment.config, current_home())
        return [] if file is None or not file.sha256 else None
    try:
        document = unwrapped_datasets(parse_json(text))
    except BadJson:
        return None
    if not isinstance(document, list) or not all(isinstance(entry, dict) for entry in document):
        return None
    return document


def shown_sets(environment: Environment, document: Sequence[Mapping[str, Any]], problems: Sequence[Problem]) -> Iterator[ShownSet]:
    """The sets of a document, each with its own problems."""
    opened = {found.entry.position: found for found in datasets_of(environment.name)}
    for position, entry in enumerate(document):
        yield _shown(position, entry, own_problems(problems, position), opened.get(position))


def new_set(entry: Mapping[str, Any], problems: Sequence[Problem] = ()) -> ShownSet:
    """A set that is to be added."""
    return _shown(NEW, entry, list(problems), None)


def _shown(position: int | str, entry: Mapping[str, Any], problems: list[Problem], opened: OpenDataset | None) -> ShownSet:
    kind = kind_of(entry)
    source = str(entry.get("type", LOCAL)) if takes_sources(kind) else ""
    return ShownSet(position, str(entry.get("id", "")), kind, source, list(field_rows(entry)), problems, opened)


def own_problems(problems: Sequence[Problem], position: int) -> list[Problem]:
    """The problems of the set at a position."""
    begin = f"dataloader[{position}]"
    return [one for one in problems if one.option == begin or one.option.startswith(f"{begin}.")]


def begun_entry(query: Mapping[str, str]) -> dict[str, Any] | None:
    """A set of the kind and source that a query names, with what people usually set; None if it names no kind."""
    kind, source = query.get("add", ""), query.get("source", LOCAL)
    if kind not in SETS:
        return None
    entry: dict[str, Any] = {"dataset_type": kind}
    if not takes_sources(kind) or source not in source_specs():
        source = LOCAL
    if "caption_strategy" in SETS[kind].model_fields:
        entry["caption_strategy"] = next(iter(source_specs()[source].captions), TEXT_FILES)
    return {"type": source, **entry}


def added_entry(sent: Mapping[str, str]) -> dict[str, Any]:
    """The set that a form adds. What it lacks is found by the check."""
    begun = begun_entry({"add": sent.get("new.dataset_type", ""), "source": sent.get("new.type", LOCAL)}) or {"dataset_type": "image"}
    return changed_entry({"id": sent.get("new.id", "").strip()[:LONGEST_ID], **begun}, sent, NEW)


def typed_entries(document: Sequence[Mapping[str, Any]], sent: Mapping[str, str]) -> list[dict[str, Any]]:
    """The sets with the changes of a form."""
    return [changed_entry(entry, sent, position) for position, entry in enumerate(document)]


def are_of(document: Sequence[Mapping[str, Any]], ids: Sequence[str]) -> bool:
    """Whether a form is about these sets in this order; its fields name them by position. A program may leave the ids out."""
    return not ids or list(ids) == [str(entry.get("id", "")) for entry in document]


def chosen_set(shown: list[ShownSet], wanted: str) -> ShownSet | None:
    """The set whose images are shown: the one that was asked for, else the first."""
    with_images = [one for one in shown if one.opened is not None]
    return next((one for one in with_images if one.id == wanted), with_images[0] if with_images and not wanted else None)
