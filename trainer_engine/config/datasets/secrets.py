"""Hides and reveals the secrets of datasets. Sources declare which of their fields hold some."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from types import MappingProxyType
from typing import Any

from trainer_engine.config import secrets
from trainer_engine.config.dataset_tables import source_specs
from trainer_engine.config.option import OptionSpec
from trainer_engine.config.secrets import HIDDEN
from trainer_engine.contract.files import read_document

STORED_AS = "datasets"
"""Key of the entries with secrets among the secrets of a run, and of a datasets file."""
NAMING = ("id", "aws_bucket_name")
"""Fields that, with those of the secrets, say which stored entry is meant."""


@cache
def spec() -> OptionSpec:
    """Returns a datasets file as an option whose JSON holds secrets."""
    sources = source_specs().values()
    return OptionSpec(
        name=STORED_AS,
        group="",
        kind="json",
        default=None,
        required=False,
        optional=True,
        choices=(),
        later=(),
        synonyms=MappingProxyType({}),
        aliases=(),
        bounds=MappingProxyType({}),
        help="The datasets of a run.",
        secret=tuple(name for source in sources for name in source.secrets),
        addresses=tuple(name for source in sources for name in source.addresses),
        places=tuple(dict.fromkeys(name for source in sources for name in source.places)),
    )


def hide_datasets(document: object) -> Any:
    """Returns the entries of a datasets file as they may be stored and shown."""
    return read_document(secrets.hide(spec(), json.dumps(document)))


def reveal_datasets(document: object, stored: str) -> Any:
    """Returns the entries with each ``***`` replaced by the secret that was stored for the same machine. ``stored``: see ``secrets_in``."""
    text = json.dumps(document)
    return read_document(secrets.reveal(spec(), text, stored)) if HIDDEN in text and stored else document


def secrets_in(document: object) -> str:
    """Returns the entries that hold secrets, cut to what is needed to reveal them, as JSON; empty without any."""
    entries = document if isinstance(document, list) else []
    names = {*NAMING, *spec().secret, *spec().addresses, *spec().places}
    kept = [{name: value for name, value in entry.items() if name in names} for entry in entries if _holds_secrets(entry)]
    return json.dumps(kept, ensure_ascii=False) if kept else ""


def joined(stored: Sequence[str]) -> str:
    """Returns the entries of several results of ``secrets_in``."""
    entries = [entry for text in stored if text for entry in read_document(text)]
    return json.dumps(entries, ensure_ascii=False) if entries else ""


def _holds_secrets(entry: object) -> bool:
    return isinstance(entry, Mapping) and hide_datasets(dict(entry)) != entry
