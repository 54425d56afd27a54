"""What a network reads of the states of text encoders, by the keys of their configurations. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any


@dataclass(frozen=True, kw_only=True)
class TextStates:
    """States of one or more text encoders, and the configuration of what reads them."""

    width: str
    """Key of the reader's configuration: how many numbers it takes for each token, or once for a prompt. ``key.1`` is the second number of
    a list."""
    size: str = "hidden_size"
    """Key of a text encoder's configuration: how many numbers its state has. It may lie in ``text_config``."""
    depth: str = "num_hidden_layers"
    """Key of a text encoder's configuration: how many layers it has. It may lie in ``text_config``."""
    kind: str = ""
    """``model_type`` in a text encoder's configuration; empty if any is taken."""
    flavour_kinds: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """Flavour -> the ``model_type`` of its text encoder, if it is another than ``kind``."""
    folders: tuple[str, ...] = ("text_encoder",)
    """Subfolders of the text encoders. Their states stand side by side."""
    reader: str = ""
    """Subfolder of what reads them; empty for the network."""
    layers: tuple[int, ...] = ()
    """The states that are read, 0 for the input of the first layer; empty for the last one."""
    flavour_layers: Mapping[str, tuple[int, ...]] = field(default_factory=lambda: MappingProxyType({}))
    """Flavour -> the states that are read, if they are others than ``layers``."""
    layers_setting: str = ""
    """Key of ``model_index.json`` that states other ``layers``; empty if there is none."""
    layers_key: str = ""
    """Key of the reader's configuration that lists the layers whose outputs it reads, 0 for the first; empty if it lists none."""
    side_by_side: bool = False
    """Whether the states of several layers stand side by side, so that they make the reader's width together."""
    count: str = ""
    """Key of the reader's configuration: how many states it takes for each token; empty if it has none."""

    def layers_of(self, flavour: str | None, settings: Mapping[str, Any]) -> tuple[int, ...] | None:
        """The states that are read. ``settings``: ``model_index.json``; None if it states something else than numbers of layers."""
        stated = settings.get(self.layers_setting) if self.layers_setting else None
        if stated is None:
            return self.flavour_layers.get(flavour or "", self.layers)
        is_right = isinstance(stated, list) and stated and all(type(one) is int and one >= 0 for one in stated)
        return tuple(stated) if is_right else None


def stated_layers(config: Mapping[str, Any], key: str) -> tuple[int, ...]:
    """The states that a configuration lists by the layers that make them, 0 for the input of the first; none if it lists no layers."""
    listed = config.get(key) if key else None
    is_right = isinstance(listed, (list, tuple)) and all(type(one) is int and one >= 0 for one in listed)
    return tuple(one + 1 for one in listed) if is_right and listed else ()


def stated_width(config: Mapping[str, Any], key: str) -> int | None:
    """The number that a reader's configuration states as its ``TextStates.width``; None if there is none."""
    name, _, place = key.partition(".")
    value = config.get(name)
    if place and isinstance(value, list) and int(place) < len(value):
        value = value[int(place)]
    return value if type(value) is int else None


def stated_number(config: Mapping[str, Any], key: str) -> int | None:
    """A whole number in the configuration of a text encoder, or in its part for text; None if there is none."""
    part = config.get("text_config")
    value = part[key] if isinstance(part, Mapping) and key in part else config.get(key)
    return value if type(value) is int else None
