"""Reads YAML of untrusted origin: plain values only, no anchors, no constructed objects, no duplicate keys."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import yaml

BROKEN_YAML = (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError)
"""The exceptions that PyYAML raises for invalid files: it builds values of unusual tags without checks."""


class UnreadableYaml(ValueError):
    """The text is not plain YAML. The message names the place and quotes nothing, because the text may come from any file of the user."""


class _PlainLoader(yaml.SafeLoader):
    """Refuses anchors and aliases, with which a few hundred bytes can expand to gigabytes."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if getattr(event, "anchor", None):
            raise yaml.composer.ComposerError(None, None, "anchors and aliases are not read", event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Refuses a key that is given twice; the base class keeps its last value."""
        found: set[str] = set()
        for key, _ in node.value:
            name = str(key.value) if isinstance(key, yaml.ScalarNode) else ""
            if name in found:
                raise yaml.constructor.ConstructorError(None, None, "a key is given twice", key.start_mark)
            found.add(name)
        return super().construct_mapping(node, deep)


def parse_yaml(text: str) -> Any:
    """Returns the value of the text. Raises UnreadableYaml."""
    try:
        return yaml.load(text, Loader=_PlainLoader)  # noqa: S506 - a SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise UnreadableYaml(f"not a plain YAML file: its text cannot be read{place}") from None
    except BROKEN_YAML:
        raise UnreadableYaml("not a plain YAML file: its text cannot be read") from None
