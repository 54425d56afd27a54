"""Keys of JSON objects that people write: none stands twice."""

from __future__ import annotations

from collections import Counter
from typing import Any

LONGEST_SHOWN = 80


class DuplicateKey(ValueError):
    """An object has a key twice; all but the last would be lost without a word."""


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """For ``json.loads(text, object_pairs_hook=unique_keys)``. Raises DuplicateKey, which names the key and never a value."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise DuplicateKey(f"the key {twice[:LONGEST_SHOWN]!r} stands twice in one object")
    return found
