"""Reads YAML of untrusted origin: plain values only, no anchors, no constructed objects, no duplicate keys, and only so many values.

PyYAML takes 20 microseconds for a value, and several times that within many brackets: the number of both bounds its time.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import yaml

_BROKEN = (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError)
"""The exceptions that PyYAML raises for invalid files: it builds values of unusual tags without checks."""

MOST_NODES = 10_000
"""Values and keys of a text. The configurations of trainers have some hundreds."""
DEEPEST = 16
"""Levels of objects and lists."""


class UnreadableYaml(ValueError):
    """The text is not plain YAML. The message names the place and quotes nothing, because the text may come from any file of the user."""


class _TooMuch(Exception):
    """The text has more values or levels than are read."""


class _PlainLoader(yaml.SafeLoader):
    """Refuses anchors and aliases, with which a few hundred bytes can expand to gigabytes."""

    def __init__(self, text: str, most_nodes: int) -> None:
        super().__init__(text)
        self._nodes_left, self._levels_left = most_nodes, DEEPEST + 1

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if getattr(event, "anchor", None):
            raise yaml.composer.ComposerError(None, None, "anchors and aliases are not read", event.start_mark)
        self._nodes_left -= 1
        self._levels_left -= 1
        if self._nodes_left < 0:
            raise _TooMuch("it has too many values")
        if self._levels_left < 0:
            raise _TooMuch(f"it is nested deeper than {DEEPEST} levels")
        node = super().compose_node(parent, index)
        self._levels_left += 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Refuses a key that is given twice; the base class keeps its last value."""
        found: set[str] = set()
        for key, _ in node.value:
            name = str(key.value) if isinstance(key, yaml.ScalarNode) else ""
            if name in found:
                raise yaml.constructor.ConstructorError(None, None, "a key is given twice", key.start_mark)
            found.add(name)
        return super().construct_mapping(node, deep)


def parse_yaml(text: str, most_nodes: int = MOST_NODES) -> Any:
    """Returns the value of the text. Raises UnreadableYaml."""
    try:
        return _PlainLoader(text, most_nodes).get_single_data()
    except _TooMuch as error:
        raise UnreadableYaml(f"not a plain YAML file: {error}") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise UnreadableYaml(f"not a plain YAML file: its text cannot be read{place}") from None
    except _BROKEN:
        raise UnreadableYaml("not a plain YAML file: its text cannot be read") from None
