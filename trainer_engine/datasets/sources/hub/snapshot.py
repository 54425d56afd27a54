"""The files of one revision of a dataset on this machine: in the hub's cache, or in a folder."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from trainer_engine.config.hub import HubSettings
from trainer_engine.contract.files import UnreadableFile, is_folder, open_regular, read_small, read_small_json, read_small_text
from trainer_engine.datasets.sources.base import NotFetched, Version
from trainer_engine.datasets.sources.hub.card import LARGEST_CARD_BYTES, read_card

MAIN = "main"
CONVERTED = "refs/convert/parquet"
"""Branch in which the hub keeps a copy of many datasets in parquet."""
CARD = "README.md"
COMMIT = re.compile(r"[0-9a-f]{40}\Z")
MOST_FILES = 1_000_000
LARGEST_LISTING_BYTES = 512 << 20
SHARD_COUNT = re.compile(r"-\d{5}-of-(\d{5})(?:-[0-9a-f]+)?\.\w+\Z")


@dataclass(frozen=True)
class Snapshot:
    """The files of a dataset at one revision. Those of a repository need not be on this machine."""

    root: str
    """Folder of the files."""
    boundary: str
    """Real path of the folder that no file may lead out of."""
    commit: str = ""
    """Empty for a folder that is not of the hub."""
    checksums: Mapping[str, str] = field(default_factory=dict, compare=False)
    """Path in the repository -> checksum of the file; empty if it is unknown."""
    is_complete: bool = field(default=True, compare=False)
    """Whether ``checksums`` has every file of the revision, not only those that were downloaded."""

    def path(self, name: str) -> str:
        """Returns the path of a file. Raises OSError for one outside the dataset."""
        path = os.path.join(self.root, name)  # noqa: PTH118
        if name.startswith("/") or ".." in name.split("/") or "\0" in name or not self._holds(os.path.realpath(path)):
            raise UnreadableFile("it leads out of the dataset")
        return path

    def _holds(self, real: str) -> bool:
        return real.startswith(f"{self.boundary}/")

    def open(self, name: str) -> BinaryIO:
        """Opens a regular file. Raises OSError."""
        return open_regular(self.path(name))

    def version(self, name: str) -> Version:
        """Returns what changes with the content of a file. Raises OSError."""
        if self.commit:
            return f"{self.commit}:{self.checksums.get(name, '')[:16]}"
        return os.stat(self.path(name)).st_mtime_ns  # noqa: PTH116

    def card(self) -> Mapping[str, Any]:
        """Returns the settings in README.md; none if there is no such file."""
        try:
            return read_card(read_small(self.path(CARD), LARGEST_CARD_BYTES))
        except OSError:
            return {}

    def missing(self, names: Iterable[str]) -> list[str]:
        """Returns the files that are not on this machine."""
        return [name for name in names if not os.path.isfile(os.path.join(self.root, name))]  # noqa: PTH113, PTH118


def folder_snapshot(folder: str) -> Snapshot:
    """Returns the files below a folder. Raises OSError."""
    os.stat(folder)  # noqa: PTH116
    names = dict.fromkeys(_walk(folder), "")
    return Snapshot(folder, os.path.realpath(folder), checksums=names)


def file_snapshot(file: str) -> Snapshot:
    """Returns a snapshot of a single file."""
    folder, _, name = file.rpartition("/")
    return Snapshot(folder or "/", os.path.realpath(folder or "/"), checksums={name: ""})


def _walk(folder: str) -> Iterator[str]:
    count = 0
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        inside = os.path.relpath(place, folder)
        for name in files:
            count += 1
            if count > MOST_FILES:
                raise OSError(f"it holds more than {MOST_FILES} files")
            yield name if inside == "." else f"{inside}/{name}"


def repository_folder(hub: HubSettings, repository: str) -> Path:
    """Returns the folder of a dataset in the hub's cache. It need not exist."""
    return hub.cache / f"datasets--{repository.replace('/', '--')}"


def cached_commit(hub: HubSettings, repository: str, revision: str | None) -> str | None:
    """Returns the commit that a branch or tag stood for when it was last fetched; None if it never was."""
    wanted = revision or MAIN
    if COMMIT.match(wanted):
        return wanted
    if wanted.startswith("/") or ".." in wanted:  # git has no such names, and the file system would follow them
        return None
    try:
        commit = read_small_text(repository_folder(hub, repository) / "refs" / wanted).strip()
    except OSError:
        return None
    return commit if COMMIT.match(commit) else None


def cached_snapshot(hub: HubSettings, repository: str, revision: str | None) -> Snapshot:
    """Returns what the hub's cache holds of a revision. Raises NotFetched if that is nothing."""
    commit = cached_commit(hub, repository, revision)
    folder = repository_folder(hub, repository)
    if commit is None:
        raise NotFetched(f"it is not in the cache of the hub ({hub.cache})")
    root = folder / "snapshots" / commit
    listed = read_listing(folder, commit)
    if listed is None and not is_folder(root):
        raise NotFetched(f"it is not in the cache of the hub ({hub.cache})")
    if listed is not None:
        checksums = {name: one.checksum for name, one in listed.items()}
    else:
        checksums = {name: _blob(root / name) for name in _walk(str(root))}
    return Snapshot(str(root), os.path.realpath(hub.cache), commit, checksums, is_complete=listed is not None)


def _blob(path: Path) -> str:
    """Returns the name of the blob that a file of a snapshot links to: its checksum."""
    try:
        return path.readlink().name
    except OSError:
        return ""


class Listed(NamedTuple):
    """What the hub says of a file."""

    checksum: str
    size_bytes: int


def listing_note(folder: Path, commit: str) -> Path:
    """Returns the file in which the hub's library notes all files of a commit, beside its snapshots."""
    return folder / "trees" / f"{commit}.json"


def read_listing(folder: Path, commit: str) -> dict[str, Listed] | None:
    """Returns all files of a commit by their paths; None without a note."""
    try:
        document = read_small_json(listing_note(folder, commit), LARGEST_LISTING_BYTES)
    except OSError:
        return None
    files = document.get("files") if isinstance(document, dict) and document.get("format_version") == 1 else None
    if not isinstance(files, dict):
        return None
    return {
        str(name): Listed(str(facts.get("lfs_sha256") or facts.get("blob_id") or ""), int(facts.get("size") or 0))
        for name, facts in files.items()
        if isinstance(facts, dict)
    }


def incomplete_shards(names: Sequence[str]) -> bool:
    """Whether the names of shards show that some of them are missing: ``train-00000-of-00002.parquet`` alone."""
    counts = [match[1] for name in names if (match := SHARD_COUNT.search(name))]
    return any(counts.count(count) < int(count) for count in set(counts))
