"""Lists folders from which images can be taken, for a person who picks one. Places that the server may not read are not shown."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice, takewhile
from pathlib import Path

from environments.errors import EnvironmentProblems
from environments.images.upload import FOLDER
from environments.paths import Home, Kind, resolve
from trainer_engine.contract.errors import Problem
from trainer_engine.contract.files import is_folder
from trainer_engine.datasets.media.image import SUFFIXES

MOST_FOLDERS = 500
LONGEST_SECONDS = 3.0
"""Time to look into a folder and those in it; a slow disk lists fewer."""
MOST_COUNTED = 2_000
"""Directory entries of one folder that are looked at."""


@dataclass(frozen=True)
class FolderFacts:
    """A folder that can be picked."""

    path: str
    name: str
    images: int
    """In the folder itself, among the entries that were looked at."""
    captions: int
    """Text files among them."""


@dataclass(frozen=True)
class Listed:
    """A folder and what lies in it; without a path the places at which picking begins."""

    folder: FolderFacts | None
    parent: str | None
    """None where the folder above may not be read."""
    folders: list[FolderFacts]
    is_cut: bool
    """Whether there are more than were listed."""


def list_folders(given: str, home: Home) -> Listed:
    """The folders in a folder, or, for an empty text, the places at which to begin. Raises EnvironmentProblems."""
    if not given:
        places = [home.root / FOLDER, home.root, *map(Path, home.place_rule.roots)]
        known = dict.fromkeys(os.path.realpath(place) for place in places if is_folder(place) and home.place_rule.may_read(place))
        return Listed(None, None, [facts_of(Path(place)) for place in known], is_cut=False)
    found = resolve(given, "path", home=home, must_exist=True, kind=Kind.FOLDER)
    if isinstance(found, Problem):
        raise EnvironmentProblems.of([found])
    ends_at = time.monotonic() + LONGEST_SECONDS
    try:
        names = sorted(islice(_subfolders(found.path, home, ends_at), MOST_FOLDERS + 1))
    except OSError as error:
        message = f"{found.path} cannot be listed: {error.strerror or error}."
        raise EnvironmentProblems.of([Problem.error("path", "unreadable", message, got=given)]) from error
    above = found.path.parent
    parent = str(above) if above != found.path and home.place_rule.may_read(above) else None
    folders = [facts_of(found.path / name) for name in takewhile(lambda _: time.monotonic() < ends_at, names[:MOST_FOLDERS])]
    is_cut = len(folders) < len(names) or time.monotonic() >= ends_at
    return Listed(facts_of(found.path), parent, folders, is_cut=is_cut)


def facts_of(folder: Path, most: int = MOST_COUNTED) -> FolderFacts:
    """What lies in a folder itself, among its first ``most`` entries. One that cannot be listed has nothing."""
    images = captions = 0
    try:
        with os.scandir(folder) as entries:
            for entry, _ in zip(entries, range(most), strict=False):
                suffix = os.path.splitext(entry.name)[1].lower()  # noqa: PTH122
                images += suffix in SUFFIXES
                captions += suffix == ".txt"
    except OSError:
        pass
    return FolderFacts(str(folder), folder.name or str(folder), images, captions)


def _subfolders(folder: Path, home: Home, ends_at: float) -> Iterator[str]:
    """Names that JSON can hold of folders that may be read, as far as they are found in time. Raises OSError."""
    with os.scandir(folder) as entries:
        for entry in takewhile(lambda _: time.monotonic() < ends_at, entries):
            if entry.name.startswith(".") or not entry.name.isprintable():
                continue
            if is_folder(Path(entry.path)) and home.place_rule.may_read(Path(entry.path)):
                yield entry.name
