"""The names that dataset entries may use, by kind of dataset, and whether a document is a datasets file at all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from importlib import resources
from types import MappingProxyType
from typing import Any

from trainer_engine.config.dataset_tables import TableEntry, caption_specs, fields_of, source_specs, table_paths
from trainer_engine.config.datasets.fields import Entry, FrameSet, LatentSet, TextSet
from trainer_engine.config.datasets.hints import GONE, HINTS
from trainer_engine.config.datasets.image_set import ImageSet
from trainer_engine.config.datasets.reference_set import ReferenceSet
from trainer_engine.config.datasets.refused import KINDS
from trainer_engine.config.option import OptionSpec, spec_of

SETS: Mapping[str, type[Entry]] = MappingProxyType(
    {
        **dict.fromkeys(("image", "video", "eval"), ImageSet),
        "conditioning": ReferenceSet,
        "text_embeds": TextSet,
        "image_embeds": LatentSet,
        "conditioning_image_embeds": FrameSet,
    }
)
TRAINED_ON = ("image", "video")
"""Values of ``dataset_type`` for sets that are trained on."""
OF_IMAGES = (*TRAINED_ON, "eval")
"""Values of ``dataset_type`` for sets of images or clips with captions."""
NOT_WRITTEN = ("position", "own_fields", "generated")
"""Fields that parsing fills in."""
PLAIN = (
    *(*NOT_WRITTEN, "dataset_type", "instance_prompt", "crop_aspect_buckets", "conditioning_data", "conditioning"),
    *("caption_filter_list", "caption_shuffle", "parquet", "video"),
)
"""Fields with a parser of their own."""
COMMON = frozenset({"id", "type", "dataset_type", "disabled", "disable"})
PATHS = frozenset({"instance_data_dir", "cache_dir_vae", "cache_dir", "caption_filter_list", "parquet", *table_paths()})
SWITCH = OptionSpec(
    name="disabled",
    group="",
    kind="bool",
    default=False,
    required=False,
    optional=False,
    choices=(),
    later=(),
    synonyms=MappingProxyType({}),
    aliases=("disable",),
    bounds=MappingProxyType({}),
    help="Skip the entry.",
)
KIND = OptionSpec(
    name="dataset_type",
    group="",
    kind="str",
    default="image",
    required=False,
    optional=False,
    choices=tuple(SETS),
    later=tuple(KINDS),
    synonyms=MappingProxyType({}),
    aliases=(),
    bounds=MappingProxyType({}),
    help="Kind of the dataset.",
)


@cache
def specs(dataset_type: str) -> Mapping[str, OptionSpec]:
    """Returns the declared fields of a kind of dataset that hold a single plain value."""
    cls = SETS[dataset_type]
    found = {name: spec_of(name, dataset_type, info) for name, info in cls.model_fields.items() if name not in PLAIN}
    return MappingProxyType(found)


@cache
def allowed(dataset_type: str) -> frozenset[str]:
    """Returns the names that an entry of this kind may use, including aliases."""
    own = [spec for entry in table_entries(dataset_type) for spec in fields_of(entry).values()]
    return _of_every_source(dataset_type) | {name for spec in own for name in (spec.name, *spec.aliases)}


def _of_every_source(dataset_type: str) -> frozenset[str]:
    """Returns the names that an entry of this kind may use whatever its source and caption strategy."""
    aliases = {alias for spec in specs(dataset_type).values() for alias in spec.aliases}
    return COMMON | aliases | (set(SETS[dataset_type].model_fields) - set(NOT_WRITTEN))


@cache
def table_entries(dataset_type: str) -> tuple[TableEntry, ...]:
    """Returns the sources and caption strategies that an entry of this kind may choose."""
    fields = SETS[dataset_type].model_fields
    chosen_sources = source_specs().values() if "own_fields" in fields else ()
    return (*chosen_sources, *(caption_specs().values() if "caption_strategy" in fields else ()))


@cache
def listed() -> Mapping[str, Any]:
    """Returns the fields of the format without code here, or that need none, each with the format's default, or None."""
    text = resources.files(__package__).joinpath("not_available.json").read_text(encoding="utf-8")
    listed: dict[str, Any] = json.loads(text)
    return MappingProxyType(listed)


@cache
def later() -> Mapping[str, Any]:
    """Returns the fields of the format that are not implemented yet: those that no source and no caption strategy declares either."""
    declared = frozenset[str](HINTS).union(GONE, *(allowed(kind) for kind in SETS))
    return MappingProxyType({name: default for name, default in listed().items() if name not in declared})


@cache
def known_names() -> frozenset[str]:
    """Returns the names of all fields of the format."""
    return frozenset(later()).union(HINTS, GONE, *(allowed(kind) for kind in SETS))


EVERYDAY = frozenset(
    (
        *("id", "type", "audio", "video", "metadata", "csv", "parquet", "huggingface", "conditioning", "default", "disable", "disabled"),
        *("source", "subfolder", "split", "revision", "resolution", "probability", "repeats", "dataset_name"),
        *("aws_access_key_id", "aws_secret_access_key"),
        *("aws_session_token", "aws_region_name", "aws_endpoint_url", "aws_bucket_name", "aws_data_prefix", "aws_max_pool_connections"),
    )
)
"""Fields of the format that other kinds of documents have too."""


COLUMNS = frozenset(("image_column", "video_column", "caption_column"))
"""Fields of sources and caption strategies that only datasets have, although these declare them."""


@cache
def _distinctive_names() -> frozenset[str]:
    """Returns names that only datasets have. Other fields of sources are not among them: they may be words of other documents."""
    return (frozenset(listed()) | COLUMNS).union(*(_of_every_source(kind) for kind in SETS)) - EVERYDAY


def is_like_a_dataset(entry: object) -> bool:
    """Whether an entry has a field that only datasets have."""
    return isinstance(entry, Mapping) and not _distinctive_names().isdisjoint(entry)


def are_datasets(document: object) -> bool:
    """Whether a document may be shown as a datasets file: a list of objects, each with a field that only datasets have."""
    return isinstance(document, list) and all(is_like_a_dataset(entry) for entry in document)
