"""Asks the hub about a dataset that is not in its cache, for ``validate``: a few small answers, each within seconds."""

from __future__ import annotations

import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from trainer_engine.config.hub import HubSettings, dataset_gated, dataset_no_revision, dataset_not_cached, dataset_not_found
from trainer_engine.contract.errors import Problem
from trainer_engine.contract.files import read_document
from trainer_engine.datasets.sources.base import RemoteFacts, WrongField
from trainer_engine.datasets.sources.hub.columns import root_of
from trainer_engine.datasets.sources.hub.layout import LARGEST_CARD_BYTES, ChosenFiles, OtherFormat, choose_files, read_card
from trainer_engine.datasets.sources.hub.opening import converted_card, media_suffixes
from trainer_engine.datasets.sources.hub.options import OBJECT, RowOptions
from trainer_engine.datasets.sources.hub.snapshot import CARD, CONVERTED, MAIN, repository_folder
from trainer_engine.datasets.tables import damage

if TYPE_CHECKING:
    from trainer_engine.config.datasets import ImageSet, ReferenceSet

ANSWER_SECONDS = 5.0
LARGEST_ANSWER_BYTES = 64 << 20
CHUNK_BYTES = 1 << 16
FOOTER_BYTES, LARGEST_FOOTER_BYTES = 1 << 16, 8 << 20
PARQUET = b"PAR1"
FAILURES = (OSError, ValueError, HTTPException)
"""What is raised if the hub does not answer, or if what answers is not the hub."""


@dataclass(frozen=True)
class HubAnswers:
    """The hub's answers about one dataset."""

    hub: HubSettings
    repository: str

    def files(self, revision: str) -> tuple[str, dict[str, int]]:
        """Returns the commit of a revision and its files with their sizes, 0 if unknown. Raises HTTPError, and one of ``FAILURES``."""
        answer = read_document(self._get(f"api/datasets/{self.repository}/revision/{quote(revision, safe='')}?blobs=true"))
        siblings = answer.get("siblings") if isinstance(answer, dict) else None
        if not isinstance(siblings, list):
            raise ValueError("the answer lists no files")
        files = {str(one["rfilename"]): one.get("size") for one in siblings if isinstance(one, dict) and "rfilename" in one}
        return str(answer.get("sha") or revision), {name: size if isinstance(size, int) else 0 for name, size in files.items()}

    def card(self, commit: str) -> Mapping[str, Any]:
        return read_card(self._get(self._address(commit, CARD), largest=LARGEST_CARD_BYTES))

    def schema(self, commit: str, name: str) -> Any:
        """Returns the columns of a parquet file from its last bytes; None if they cannot be read."""
        import pyarrow
        from pyarrow import parquet

        tail = self._get(self._address(commit, name), last_bytes=FOOTER_BYTES)
        length = int.from_bytes(tail[-8:-4], "little") + 8
        if FOOTER_BYTES < length <= LARGEST_FOOTER_BYTES:
            tail = self._get(self._address(commit, name), last_bytes=length)
        if tail[-4:] != PARQUET or length > len(tail):
            return None
        try:
            return parquet.read_schema(pyarrow.BufferReader(PARQUET + tail[-length:]))
        except damage():
            return None

    def _address(self, commit: str, name: str) -> str:
        return f"datasets/{self.repository}/resolve/{quote(commit, safe='')}/{quote(name)}"

    def _get(self, path: str, *, last_bytes: int = 0, largest: int = LARGEST_ANSWER_BYTES) -> bytes:
        request = urllib.request.Request(f"{self.hub.endpoint}/{path}")
        if self.hub.token:
            request.add_unredirected_header("Authorization", f"Bearer {self.hub.token}")  # other hosts serve the files
        if last_bytes:
            request.add_header("Range", f"bytes=-{last_bytes}")
            largest = last_bytes
        deadline, content = time.monotonic() + ANSWER_SECONDS, b""
        with urllib.request.urlopen(request, timeout=ANSWER_SECONDS) as answer:
            while len(content) <= largest and (chunk := answer.read1(CHUNK_BYTES)):
                content += chunk
                if time.monotonic() > deadline:
                    raise TimeoutError("the answer takes too long")
        if len(content) > largest:
            raise ValueError("the answer is too long")
        return content


def ask(entry: ImageSet | ReferenceSet, options: RowOptions, hub: HubSettings) -> RemoteFacts:
    """Returns the problems that the engine would have with the dataset, or a note if the hub does not answer, and what it downloads."""
    from trainer_engine.datasets.findings import wrong_field

    option, repository = entry.place_option, entry.place
    if hub.is_offline:
        return RemoteFacts([dataset_not_cached(option, repository, f"it is not in the cache ({hub.cache})")])
    try:
        size = _check(HubAnswers(hub, repository), options, captions=_needs_captions(entry))
    except WrongField as error:
        return RemoteFacts([wrong_field(entry, error)])
    except urllib.error.HTTPError as error:
        return RemoteFacts([_refused(option, repository, options.revision, error)])
    except FAILURES as error:
        message = f"It is unknown whether the dataset {repository} can be downloaded: {hub.endpoint} does not answer ({error})."
        return RemoteFacts([Problem.note(option, "hub_not_reached", message, got=repository)])
    return RemoteFacts(folder=str(hub.cache), size_bytes=size)


def _needs_captions(entry: ImageSet | ReferenceSet) -> bool:
    return getattr(entry, "caption_strategy", "") == OBJECT and not getattr(entry, "only_instance_prompt", False)


def _refused(option: str, repository: str, revision: str | None, error: urllib.error.HTTPError) -> Problem:
    code = error.headers.get("X-Error-Code", "")
    if code == "RevisionNotFound":
        return dataset_no_revision(option, repository, revision)
    if code == "GatedRepo" or error.code == 403:
        return dataset_gated(option, repository)
    if error.code in (401, 404):
        return dataset_not_found(option, repository)
    message = f"The hub answered {error.code} when asked for the dataset {repository}."
    return Problem.note(option, "hub_not_reached", message, got=repository)


def _check(answers: HubAnswers, options: RowOptions, *, captions: bool) -> int:
    """Returns the bytes of the split that are not in the cache. Raises WrongField, HTTPError, and one of ``FAILURES``."""
    commit, files = answers.files(options.revision or MAIN)
    card = answers.card(commit) if CARD in files else {}
    try:
        chosen = choose_files(files, card, options, media_suffixes())
    except OtherFormat:
        if options.revision:
            raise
        copy = _converted(answers, options)
        if copy is None:
            raise
        commit, files, chosen = copy
    stored = repository_folder(answers.hub, answers.repository) / "snapshots" / commit
    missing = sum(files.get(name, 0) for name in chosen.all if not (stored / name).exists())
    schema = answers.schema(commit, chosen.tables[0]) if chosen.tables else None
    if schema is None:
        return missing
    from trainer_engine.datasets.sources.hub.media_column import media_column

    media_column(schema, options)
    for path in (*options.caption_columns, *options.fallback_columns) if captions else ():
        root_of("caption_column", path, schema.names)
    for path in _filtered(options):
        root_of(OBJECT, path, schema.names)
    return missing


def _filtered(options: RowOptions) -> Sequence[str]:
    return [path for path, _ in options.filter.conditions()]


def _converted(answers: HubAnswers, options: RowOptions) -> tuple[str, dict[str, int], ChosenFiles] | None:
    """Returns the commit, the files and the split in the hub's own copy in parquet; None if there is no copy."""
    try:
        commit, files = answers.files(CONVERTED)
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return None
        raise
    return commit, files, choose_files(files, converted_card(files), options, media_suffixes())
