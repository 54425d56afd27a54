"""Whether a document is a datasets file at all: any file of a home can be named as one, and only a datasets file is ever shown."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

from trainer_engine.config.datasets.fields import known_names

EVERYDAY = frozenset(
    (
        *("id", "type", "audio", "video", "csv", "parquet", "huggingface", "conditioning", "default", "disable", "disabled", "source"),
        *("split", "revision", "resolution", "probability", "repeats", "dataset_name", "aws_access_key_id", "aws_secret_access_key"),
        *("aws_session_token", "aws_region_name", "aws_endpoint_url", "aws_bucket_name", "aws_data_prefix", "aws_max_pool_connections"),
    )
)
"""Fields of the format that documents of other kinds have too."""


@cache
def _emitting() -> frozenset[str]:
    return known_names() - EVERYDAY


def is_like_a_dataset(entry: object) -> bool:
    """Whether an entry has a field that only datasets have."""
    return isinstance(entry, Mapping) and not _emitting().isdisjoint(entry)


def are_datasets(document: object) -> bool:
    """Whether a document may be shown as a datasets file: a list of objects, each with a field that only datasets have."""
    return isinstance(document, list) and all(is_like_a_dataset(entry) for entry in document)
