"""JSON that people or other programs wrote: whatever is wrong with it is a ValueError."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from typing import Any

LONGEST_SHOWN = 80


class DuplicateKey(ValueError):
    """An object has a key twice; all but the last would be lost without a word."""


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Builds an object from its members, as ``object_pairs_hook``. Raises DuplicateKey, which names the key and never a value."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise DuplicateKey(f"the key {twice[:LONGEST_SHOWN]!r} stands twice in one object")
    return found


def read_document(text: str | bytes, pairs: Callable[[list[tuple[str, Any]]], Any] = unique_keys) -> Any:
    """The value in a JSON text. Raises ValueError, also for nesting that is deeper than Python's stack and for a key that stands twice.

    ``pairs`` builds objects from their members, as ``object_pairs_hook`` of the standard library does.
    """
    try:
        return json.loads(text, object_pairs_hook=pairs)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
