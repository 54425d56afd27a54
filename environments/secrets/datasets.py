"""The secrets of datasets files. A file that the server writes holds ``***``; one that its owner writes may hold the secrets themselves.

They are stored by the path of the file, since several environments may name one.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

from environments.files.broken_text import without_secrets_in_text
from environments.files.config_files import read_text
from environments.files.json_text import BadJson, parse_json, write_json
from environments.paths import Home
from environments.secrets import store
from environments.secrets.store import Owner
from trainer_engine.config.datasets.secrets import STORED_AS, hide_datasets, joined, reveal_datasets, secrets_in


def of_file(path: Path) -> Owner:
    return Owner("datasets", hashlib.sha256(os.path.realpath(path).encode("utf-8", "surrogateescape")).hexdigest()[:32])


def revealed(document: object, path: Path, home: Home) -> Any:
    """The entries of the datasets file at ``path`` with each ``***`` replaced by its stored secret."""
    return reveal_datasets(document, store.read(home, of_file(path)).get(STORED_AS, ""))


def shown_text(text: str) -> str:
    """The text of a datasets file as it may be shown and kept; the same text if it has no secrets."""
    try:
        document = parse_json(text)
        hidden = hide_datasets(document)
    except (BadJson, ValueError):
        return without_secrets_in_text(text) or ""
    return text if hidden == document else write_json(hidden)


def keep_text(text: str, path: Path, home: Home) -> str:
    """Stores the secrets of a text that is about to be written to ``path``, and returns the text to write.

    ``***`` in it stands for a secret that is stored, or that the file still holds. Text that is no JSON is returned as it is. Raises
    OSError.
    """
    try:
        document = parse_json(text)
    except BadJson:
        return text
    full = reveal_datasets(document, joined([store.read(home, of_file(path)).get(STORED_AS, ""), _secrets_in_file(path, home)]))
    found = secrets_in(full)
    store.write(home, of_file(path), {STORED_AS: found} if found else {})
    hidden = hide_datasets(full)
    return text if hidden == document else write_json(hidden)


def _secrets_in_file(path: Path, home: Home) -> str:
    try:
        return secrets_in(parse_json(read_text(home, path).text or ""))
    except BadJson:
        return ""
