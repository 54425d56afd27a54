"""Downloads the files of a split into the hub's cache, when a run starts. The only code here that loads the hub's library."""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, RepoFile, hf_hub_download
from huggingface_hub.errors import (  # type: ignore[attr-defined]  # HTTPError belongs to the client that this hub uses
    GatedRepoError,
    HFValidationError,
    HTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils.tqdm import tqdm

from trainer_engine.config.hub import HubSettings
from trainer_engine.contract.atomic import write_atomically
from trainer_engine.contract.errors import DatasetUnusable, DiskFull, Problem
from trainer_engine.datasets.sources.base import Fetching, NotFetched, WrongField
from trainer_engine.datasets.sources.hub import refusals
from trainer_engine.datasets.sources.hub.layout import ChosenFiles, OtherFormat, choose_files
from trainer_engine.datasets.sources.hub.opening import chosen_in_cache, converted_card, media_suffixes, named_files
from trainer_engine.datasets.sources.hub.options import RowOptions
from trainer_engine.datasets.sources.hub.snapshot import (
    CARD,
    CONVERTED,
    MAIN,
    Listed,
    Snapshot,
    cached_snapshot,
    listing_note,
    read_listing,
    repository_folder,
)
from trainer_engine.weights.hub_client import limit_waiting

ATTEMPTS = 3
FIRST_WAIT_SECONDS = 1.0
GIVEN_UP = (GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError, HFValidationError)
TRANSIENT = (HTTPError, OSError, RuntimeError, ValueError, LookupError, TypeError, AttributeError)
"""What the library raises if the hub is away, or if what answers is not the hub."""


def fetch(option: str, repository: str, options: RowOptions, fetching: Fetching) -> None:
    """Downloads what is missing of a split. ``option`` names the dataset in problems. Raises DatasetUnusable, DiskFull, Stopped.

    If the hub cannot be reached, a split that is in the cache is enough.
    """
    hub = HubSettings.of(os.environ)
    if hub.is_offline:
        _insist_on_cache(repository, options, hub, lambda reason: refusals.not_cached(option, repository, reason))
        return
    limit_waiting()
    try:
        _Download(repository, options, hub, fetching).run()
    except GatedRepoError as error:
        raise DatasetUnusable([refusals.gated(option, repository)]) from error
    except RevisionNotFoundError as error:
        raise DatasetUnusable([refusals.no_revision(option, repository, options.revision)]) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise DatasetUnusable([refusals.not_found(option, repository)]) from error
    except TRANSIENT as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise DiskFull(
                f"The disk of the hub's cache ({hub.cache}) is full.", hint="free some space, or move it with HF_HOME"
            ) from error
        name = type(error).__name__
        _insist_on_cache(repository, options, hub, lambda _: refusals.not_reached(option, repository, name))


def _insist_on_cache(repository: str, options: RowOptions, hub: HubSettings, refusal: Callable[[str], Problem]) -> None:
    try:
        chosen_in_cache(repository, options, hub)
    except NotFetched as error:
        raise DatasetUnusable([refusal(str(error))]) from error
    except WrongField:
        return  # the examination that follows reports it


@dataclass
class _Download:
    """The download of one split."""

    repository: str
    options: RowOptions
    hub: HubSettings
    fetching: Fetching
    done: int = 0
    total: int = 0

    def run(self) -> None:
        """Raises what the library raises. What does not fit the settings is left to the examination that follows."""
        revision = self.options.revision or MAIN
        commit, files = self._listing(revision)
        if CARD in files:
            self._bring([CARD], commit, files)
        try:
            self._bring_split(choose_files(files, self._snapshot(commit).card(), self.options, media_suffixes()), commit, files)
        except OtherFormat:
            if not self.options.revision:
                self._bring_copy()
        except WrongField:
            pass
        self._note_branch(revision, commit)

    def _bring_copy(self) -> None:
        """Downloads the split from the hub's own copy of the dataset in parquet, if there is one."""
        try:
            commit, files = self._listing(CONVERTED)
            self._bring_split(choose_files(files, converted_card(files), self.options, media_suffixes()), commit, files)
        except RevisionNotFoundError:
            return
        except WrongField:
            pass
        self._note_branch(CONVERTED, commit)

    def _bring_split(self, chosen: ChosenFiles, commit: str, files: Mapping[str, Listed]) -> None:
        self._bring(chosen.all, commit, files)
        self._bring(named_files(self._snapshot(commit), chosen, self.options), commit, files)

    def _snapshot(self, commit: str) -> Snapshot:
        return cached_snapshot(self.hub, self.repository, commit)

    def _listing(self, revision: str) -> tuple[str, Mapping[str, Listed]]:
        """Returns the commit of a revision and its files, which it notes beside the snapshots, as the library does."""
        api = HfApi(endpoint=self.hub.endpoint, token=self.hub.token or None)
        commit = str(self._insist(lambda: api.dataset_info(self.repository, revision=revision).sha))
        folder = repository_folder(self.hub, self.repository)
        known = read_listing(folder, commit)
        if known is None:
            tree = self._insist(lambda: list(api.list_repo_tree(self.repository, recursive=True, revision=commit, repo_type="dataset")))
            files = {one.path: _facts(one) for one in tree if isinstance(one, RepoFile)}
            _write(listing_note(folder, commit), json.dumps({"format_version": 1, "files": files}))
            known = read_listing(folder, commit)
        return commit, known or {}

    def _note_branch(self, revision: str, commit: str) -> None:
        """Notes which commit a branch stands for, once its files are here: until then the last one is used if the hub is away."""
        if revision != commit:
            _write(repository_folder(self.hub, self.repository) / "refs" / revision, commit)

    def _bring(self, names: Iterable[str], commit: str, files: Mapping[str, Listed]) -> None:
        """Downloads files that are not in the cache, one after another."""
        missing = self._snapshot(commit).missing(name for name in names if name in files)
        self.total += sum(files[name].size_bytes for name in missing)
        for name in missing:
            self.fetching.raise_if_stopped()
            before = self.done
            self._insist(lambda name=name: self._bring_one(name, commit))  # type: ignore[misc]
            self.done = before + files[name].size_bytes
            self.fetching.on_progress(self.done, self.total)

    def _bring_one(self, name: str, commit: str) -> None:
        start = self.done

        def count(number: int, *, begins: bool) -> None:
            self.done = start + number if begins else self.done + number
            self.fetching.raise_if_stopped()
            self.fetching.on_progress(min(self.done, self.total), self.total)

        hf_hub_download(
            self.repository,
            name,
            repo_type="dataset",
            revision=commit,
            cache_dir=self.hub.cache,
            endpoint=self.hub.endpoint,
            token=self.hub.token or None,
            tqdm_class=_silent_bar(count),
        )

    def _insist(self, call: Callable[[], Any]) -> Any:
        """Calls the hub, and again after a while if it is away."""
        for attempt in range(1, ATTEMPTS):
            try:
                return call()
            except GIVEN_UP:
                raise
            except TRANSIENT as error:
                if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                    raise
                self.fetching.raise_if_stopped()
                time.sleep(FIRST_WAIT_SECONDS * attempt)
        return call()


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text.encode())


def _facts(file: RepoFile) -> dict[str, Any]:
    """Returns what the library notes about a file."""
    facts: dict[str, Any] = {"size": file.size, "blob_id": file.blob_id}
    if file.lfs is not None:
        facts |= {"lfs_sha256": file.lfs.sha256, "lfs_size": file.lfs.size}
    if getattr(file, "xet_hash", None):
        facts["xet_hash"] = file.xet_hash
    return facts


def _silent_bar(count: Callable[..., None]) -> type[tqdm]:
    """Returns a progress bar that shows nothing: it reports to ``count`` what the library reports to it."""

    class SilentBar(tqdm):
        def __init__(self, *arguments: Any, **settings: Any) -> None:
            settings.pop("name", None)
            super().__init__(*arguments, **{**settings, "disable": True})  # type: ignore[no-untyped-call]
            count(int(settings.get("initial") or 0), begins=True)

        def update(self, n: float | None = 1) -> bool | None:
            count(int(n or 0), begins=False)
            return None

    return SilentBar
