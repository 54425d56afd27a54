"""One image as it will be trained: which file, at which size, which part, with which captions."""

# ruff: noqa: PTH110, PTH116, PTH118, PTH122, PTH123
# Paths are text here: over 20,000 files, Path objects cost as much as reading the headers.
from __future__ import annotations

import os
from dataclasses import dataclass
from typing import NamedTuple

from trainer_engine.datasets.geometry import Size


class CropPlan(NamedTuple):
    """Which part of a picture is taken."""

    style: str
    """``random``, ``center`` or ``corner``."""
    aspect: float
    """Width / height that the target was computed for."""


class Reference(NamedTuple):
    """A sample that is only looked at."""

    set: str
    """Id of its conditioning set."""
    sample: Sample


@dataclass(frozen=True, slots=True)
class Sample:
    """A file of a dataset. Many thousand of them are held at once, so they share what they can."""

    root: str
    """The dataset's folder."""
    name: str
    """The file, relative to it; the sample's identity wherever something is drawn by chance."""
    size_bytes: int
    mtime_ns: int
    width: int
    """Pixels, after the EXIF orientation."""
    height: int
    resized: Size
    """The scaled picture, before the target is cut out of it."""
    target: Size
    """What the network sees."""
    crop: CropPlan
    bucket: str
    """``1.33 (1152x896)``: samples of one bucket have one target size."""
    captions: tuple[str, ...]
    """Alternatives; one is taken at a time."""
    random_name: str = ""
    """The name that places random crops where it is not its own: that of the image a reference belongs to."""
    references: tuple[Reference, ...] = ()
    """What the network sees besides, one of each conditioning set."""
    remark: str = ""
    """What people should know about the file, such as a colour profile that cannot be used."""

    @property
    def path(self) -> str:
        return os.path.join(self.root, self.name)
