"""Documents with one wrong value, for tests of what reads the files of strangers."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

Path = tuple[Any, ...]


def places(node: Any, path: Path = ()) -> Iterator[Path]:
    """The way to every value of a JSON document, beginning with the whole of it."""
    yield path
    steps = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for step, inner in steps:
        yield from places(inner, (*path, step))


def with_value(document: Any, path: Path, value: Any) -> Any:
    """A copy of the document with another value at a place."""
    if not path:
        return value
    changed = copy.deepcopy(document)
    node = changed
    for step in path[:-1]:
        node = node[step]
    node[path[-1]] = value
    return changed
