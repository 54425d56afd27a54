"""How a model of a family lies in one file, in the layout of its original code. Standard library only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

SUFFIX = ".safetensors"
NETWORK_PREFIX = "model.diffusion_model."
"""Prefix of the network's keys in a complete checkpoint. Files with the network alone have it or not."""
VAE_PREFIXES = ("first_stage_model.", "vae.")


@dataclass(frozen=True, kw_only=True)
class FileLayout:
    """One layout of a family's files."""

    title: str
    """Name of the model in messages."""
    mark: str
    """Part of a key of the network that shows which model it is."""
    mark_width: int = 0
    """Size of the tensor with that key along ``mark_axis``; 0 for any."""
    mark_axis: int = -1
    prefixes: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """Folder of a component in a pipeline -> prefix of its keys, for each component of a complete checkpoint. Empty for a family whose
    checkpoints are not loaded as a whole; its network alone is."""
    flavours: frozenset[str] = frozenset()
    """Flavours with this layout; empty for all that no other layout of the family names."""

    def is_complete(self, keys: Iterable[str]) -> bool:
        """Whether a file with these keys holds every component of a checkpoint of this layout."""
        known = list(keys)
        return bool(self.prefixes) and all(any(key.startswith(prefix) for key in known) for prefix in self.prefixes.values())

    def has_network(self, shapes: Mapping[str, tuple[int, ...]]) -> bool:
        """Whether the tensors of a file are those of this network."""
        marked = [shape for key, shape in shapes.items() if self.mark in key]
        return bool(marked) and (not self.mark_width or any(self._size_of(shape) == self.mark_width for shape in marked))

    def _size_of(self, shape: tuple[int, ...]) -> int | None:
        """The size along ``mark_axis``; None for a tensor without it."""
        return shape[self.mark_axis] if -len(shape) <= self.mark_axis < len(shape) else None


def is_one_file(source: str | None) -> bool:
    """Whether a source of weights is one file rather than a folder or a repository."""
    return bool(source) and str(source).endswith(SUFFIX) and Path(str(source)).is_absolute()


def layout_of(layouts: Iterable[FileLayout], flavour: str) -> FileLayout | None:
    """The layout of a flavour, or None if its family is not loaded from one file."""
    found = list(layouts)
    named = [layout for layout in found if flavour in layout.flavours]
    others = [layout for layout in found if not layout.flavours]
    return next(iter((*named, *others)), None)


def component_prefix(keys: Iterable[str], layout: FileLayout | None, folder: str) -> str:
    """Prefix of a component's keys in a file that holds it; empty if the file is this component alone."""
    known = list(keys)
    stated = layout.prefixes.get(folder) if layout else None
    usual = VAE_PREFIXES if folder == "vae" else (NETWORK_PREFIX,)
    candidates = (*([stated] if stated else []), *usual)
    return next((prefix for prefix in candidates if any(key.startswith(prefix) for key in known)), "")
