"""A column of images or clips: where its bytes are, and which suffix its rows get."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import pyarrow
from pyarrow import types

from trainer_engine.datasets.media.base import BrokenImage, medium_of
from trainer_engine.datasets.sources.base import SourceFile, WrongField
from trainer_engine.datasets.sources.hub.columns import missing_column
from trainer_engine.datasets.sources.hub.options import RowOptions
from trainer_engine.datasets.sources.hub.tiles import StreamSource

IMAGE_SUFFIX, CLIP_SUFFIX, TILE_SUFFIX = ".jpg", ".mp4", ".ppm"
LONGEST_SUFFIX = 6


@dataclass(frozen=True)
class MediaColumn:
    """How the cells of a column hold media files."""

    bytes_leaf: str
    """The column of their bytes, or a part of one; empty if there are only paths."""
    path_leaves: tuple[str, ...]
    """The column of their paths, if there is one."""
    suffix: str
    """Suffix of rows whose path has none. It chooses the medium; an image is recognised by its content."""
    is_fixed: bool = False
    """Whether every row has that suffix."""

    def path_in(self, row: Mapping[str, Any]) -> str:
        """Returns the path in a row, given the cells of ``path_leaves``; empty if there is none."""
        cell: Any = row
        for step in self.path_leaves[0].split(".") if self.path_leaves else ():
            cell = cell.get(step) if isinstance(cell, Mapping) else None
        return cell if isinstance(cell, str) else ""

    def suffix_of(self, row: Mapping[str, Any]) -> str:
        """Returns the suffix of a row, given the cells of ``path_leaves``."""
        path = "" if self.is_fixed else self.path_in(row)
        suffix = os.path.splitext(path)[1].lower()  # noqa: PTH122
        return suffix if 1 < len(suffix) <= LONGEST_SUFFIX and suffix[1:].isalnum() else self.suffix

    def has_size(self, open_cell: Callable[[], BinaryIO], size: tuple[int, ...]) -> bool:
        """Whether the image in a cell has this size."""
        source, name = StreamSource("row", open_cell), f"cell{self.suffix}"
        try:
            return medium_of(name).measure(SourceFile(source, name, source.size_of(name))).size == size
        except (OSError, BrokenImage):
            return True  # a row without a usable image says nothing about the columns


def media_column(schema: Any, options: RowOptions) -> MediaColumn:
    """Finds the column of images or clips. Raises WrongField if there is none, or if it holds something else."""
    name, field = options.column, "video_column" if options.has_clips else "image_column"
    if name not in schema.names:
        raise missing_column(field, name, schema.names)
    suffix = TILE_SUFFIX if options.tile else CLIP_SUFFIX if options.has_clips else IMAGE_SUFFIX
    kind = schema.field(name).type
    if types.is_struct(kind):
        parts = [kind.field(number).name for number in range(kind.num_fields)]
        has_bytes = "bytes" in parts and _is_binary(kind.field("bytes").type)
        has_path = "path" in parts and _is_text(kind.field("path").type)
        if has_bytes or has_path:
            leaves = (f"{name}.path",) if has_path else ()
            return MediaColumn(f"{name}.bytes" if has_bytes else "", leaves, suffix, is_fixed=bool(options.tile))
    if _is_binary(kind):
        return MediaColumn(name, (), suffix, is_fixed=True)
    if _is_text(kind):
        return MediaColumn("", (name,), suffix, is_fixed=bool(options.tile))
    what = "one image" if not options.has_clips else "one clip"
    others = [other for other in schema.names if other != name]
    raise WrongField(field, "wrong_column", f"the column {name!r} holds {str(kind)[:80]}, not {what} a row", choices=others)


def _is_binary(kind: Any) -> bool:
    return bool(types.is_binary(kind) or types.is_large_binary(kind) or kind == pyarrow.binary_view())


def _is_text(kind: Any) -> bool:
    return bool(types.is_string(kind) or types.is_large_string(kind) or kind == pyarrow.string_view())
