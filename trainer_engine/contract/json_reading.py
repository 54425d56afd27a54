"""JSON that people or other programs wrote: whatever is wrong with it is a ValueError."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any


def read_document(text: str | bytes, pairs: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """The value in a JSON text. Raises ValueError, also for nesting that is deeper than Python's stack.

    ``pairs`` builds objects from their members, as ``object_pairs_hook`` of the standard library does.
    """
    try:
        return json.loads(text, object_pairs_hook=pairs)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
