"""Datasets of the Hugging Face hub, and folders that are laid out like one. Rows are read where they lie."""

from __future__ import annotations

import os
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

from trainer_engine.config.dataset_tables import CheckedEntry
from trainer_engine.config.hub import HubSettings
from trainer_engine.datasets.sources.base import Fetching, RemoteFacts, Source, SourceKind, Suffixes
from trainer_engine.datasets.sources.hub.options import STREAMING, HubFields, OptionReader, row_options

if TYPE_CHECKING:
    from trainer_engine.config.datasets import ImageSet, ReferenceSet

NAME = "huggingface"


def _check(draft: CheckedEntry) -> None:
    reader = OptionReader(draft.values["own_fields"])
    reader.read(trusts_sizes=False)
    for refusal in reader.refusals:
        draft.error(refusal.field, refusal.code, f"{refusal.what}.", got=refusal.got, expected=refusal.expected)
    for name in ("caption_column", "fallback_caption_column"):
        if draft.values["own_fields"].get(name) and draft.values.get("caption_strategy") != NAME:
            reader.notes[name] = f"captions come from it only with caption_strategy={NAME}"
    for name, reason in reader.notes.items():
        draft.note(name, "no_effect", f"{name} has no effect: {reason}.")


def _open(entry: ImageSet | ReferenceSet) -> Source:
    from trainer_engine.datasets.sources.hub.opening import open_rows

    return open_rows(entry.place, row_options(entry), HubSettings.current())


def _fetch(entry: ImageSet | ReferenceSet, suffixes: Suffixes, fetching: Fetching) -> None:
    from trainer_engine.datasets.sources.hub.download import fetch

    if not os.path.isabs(entry.place):  # noqa: PTH117 - the place is text
        fetch(entry.place_option, entry.place, row_options(entry), fetching)


def _ask(entry: ImageSet | ReferenceSet, variables: Mapping[str, str]) -> RemoteFacts:
    from trainer_engine.datasets.sources.hub.questions import ask

    return ask(entry, row_options(entry), HubSettings.of(variables))


SOURCE = SourceKind(
    name=NAME,
    help="a dataset of the Hugging Face hub, or a folder or parquet file in its layout.",
    place_field="dataset_name",
    place_noun="dataset",
    fields=HubFields,
    paths=MappingProxyType({"dataset_name": "repository"}),
    captions=(NAME, "instanceprompt"),
    without_effect=MappingProxyType(
        {
            **STREAMING,
            "instance_data_dir": "the rows of dataset_name are read",
            "cache_dir": "downloads lie in the cache of the hub (HF_HOME), and latents in cache_dir_vae",
        }
    ),
    check=_check,
    open=_open,
    fetch=_fetch,
    ask=_ask,
)
