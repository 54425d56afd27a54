"""Reads the card of a dataset: the YAML in front of its README.md."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

LARGEST_CARD_BYTES = 1 << 20
FENCE = "---"


class _PlainLoader(yaml.SafeLoader):
    """Refuses aliases, with which a few hundred bytes can expand to gigabytes."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            raise yaml.YAMLError("aliases are not read")
        return super().compose_node(parent, index)


def read_card(content: bytes) -> Mapping[str, Any]:
    """Returns the settings in a card; none if it has none, or if they cannot be read."""
    text = content[:LARGEST_CARD_BYTES].decode("utf-8-sig", "replace").replace("\r\n", "\n")
    lines = text.split("\n")
    if lines[0].strip() != FENCE or FENCE not in (line.rstrip() for line in lines[1:]):
        return {}
    end = next(number for number, line in enumerate(lines[1:], 1) if line.rstrip() == FENCE)
    try:
        document = yaml.load("\n".join(lines[1:end]), _PlainLoader)  # noqa: S506 - a safe loader
    except (yaml.YAMLError, ValueError, RecursionError):
        return {}
    return document if isinstance(document, Mapping) else {}
