"""Makes the source of a dataset of rows from what lies on this machine."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from typing import Any

from trainer_engine.config.hub import HubSettings
from trainer_engine.datasets.media.base import media
from trainer_engine.datasets.sources.base import NotFetched, Source, WrongField
from trainer_engine.datasets.sources.hub.file_rows import FileRowSource
from trainer_engine.datasets.sources.hub.layout import ChosenFiles, OtherFormat, choose_files
from trainer_engine.datasets.sources.hub.options import RowOptions
from trainer_engine.datasets.sources.hub.snapshot import (
    CARD,
    CONVERTED,
    Snapshot,
    cached_snapshot,
    file_snapshot,
    folder_snapshot,
    incomplete_shards,
)


class CopyNotFetched(OtherFormat, NotFetched):
    """The data are in no format that is read, and a copy in parquet is not on this machine; after fetching there is none at all."""


def media_suffixes() -> frozenset[str]:
    """Returns the suffixes of all media, also of formats that are named and left out."""
    return frozenset().union(*(medium.suffixes | medium.unsupported for medium in media().values()))


def open_rows(place: str, options: RowOptions, hub: HubSettings) -> Source:
    """Returns the rows of a split. Raises OSError, WrongField; NotFetched if a file is not on this machine."""
    if os.path.isabs(place):  # noqa: PTH117 - the place is text
        snapshot = file_snapshot(place) if os.path.isfile(place) else folder_snapshot(place)  # noqa: PTH113
        return _source(place, snapshot, choose_files(snapshot.checksums, snapshot.card(), options, media_suffixes()), options)
    snapshot, chosen = chosen_in_cache(place, options, hub)
    return _source(f"hf://datasets/{place}", snapshot, chosen, options)


def chosen_in_cache(repository: str, options: RowOptions, hub: HubSettings) -> tuple[Snapshot, ChosenFiles]:
    """Returns the files of a split in the hub's cache. Raises WrongField, NotFetched if one is missing."""
    snapshot = cached_snapshot(hub, repository, options.revision)
    try:
        chosen = _choose(snapshot, snapshot.card(), options)
    except OtherFormat as error:
        if options.revision:
            raise
        try:
            snapshot = cached_snapshot(hub, repository, CONVERTED)
        except NotFetched:
            raise CopyNotFetched(error.field, error.code, str(error)) from error
        chosen = _choose(snapshot, converted_card(snapshot.checksums), options)
    missing = snapshot.missing(chosen.all)
    if missing or (not snapshot.is_complete and incomplete_shards(chosen.tables)):
        raise NotFetched(f"{len(missing) or 'some'} of its files are not in the cache of the hub ({hub.cache})")
    return snapshot, chosen


def _choose(snapshot: Snapshot, card: Mapping[str, Any], options: RowOptions) -> ChosenFiles:
    if CARD in snapshot.checksums and snapshot.missing([CARD]):
        raise NotFetched(f"its {CARD} is not in the cache of the hub")
    try:
        return choose_files(snapshot.checksums, card, options, media_suffixes())
    except WrongField as error:
        if snapshot.is_complete:
            raise
        raise NotFetched(f"of what is in the cache of the hub, {error}") from error


def converted_card(files: Collection[str]) -> Mapping[str, Any]:
    """Returns the configurations of the hub's own copies in parquet, whose names are ``<configuration>/<split>/0000.parquet``."""
    found: dict[str, dict[str, str]] = {}
    for name in files:
        parts = name.split("/")
        if len(parts) == 3 and name.endswith(".parquet"):
            found.setdefault(parts[0], {})[parts[1].removeprefix("partial-")] = f"{parts[0]}/{parts[1]}/*.parquet"
    return {"configs": [{"config_name": name, "data_files": splits} for name, splits in sorted(found.items())]}


def _source(place: str, snapshot: Snapshot, chosen: ChosenFiles, options: RowOptions) -> Source:
    if not chosen.tables:
        if options.tile:
            raise WrongField("huggingface", "not_for_files", "composite_image_config takes images of parquet files apart, not image files")
        return FileRowSource(place, snapshot, options, chosen.media, chosen.metadata)
    from trainer_engine.datasets.sources.hub.rows import RowSource

    return RowSource(place, snapshot, options, chosen.tables)


def named_files(snapshot: Snapshot, chosen: ChosenFiles, options: RowOptions) -> list[str]:
    """Returns the files of the dataset that rows name instead of holding their bytes. Raises OSError, WrongField."""
    if not chosen.tables:
        return []
    from trainer_engine.datasets.sources.hub.rows import RowSource

    return sorted(set(RowSource("", snapshot, options, chosen.tables).named_paths()) & snapshot.checksums.keys())
