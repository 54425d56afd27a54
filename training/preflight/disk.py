"""Compares the free space of every disk that a run writes to with what the run needs."""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer_engine.contract.errors import Problem
from trainer_engine.contract.files import exists
from training.preflight.estimates import size

OUTPUT = "output_dir"


@dataclass(frozen=True)
class DiskUse:
    """Data that a run writes into one folder."""

    option: str
    """The option that chose the folder."""
    folder: Path
    what: str
    """What is written, for messages, in the plural: ``checkpoints``."""
    bytes: int
    """Expected size."""
    least: int = 0
    """Minimum size: with less the run cannot begin."""


@dataclass(frozen=True)
class FileSystem:
    """The uses that share one disk."""

    uses: tuple[DiskUse, ...]
    free: int

    @property
    def bytes(self) -> int:
        return sum(use.bytes for use in self.uses)

    @property
    def least(self) -> int:
        return sum(use.least for use in self.uses)

    @property
    def largest(self) -> DiskUse:
        return max(self.uses, key=lambda use: use.bytes)

    @property
    def what(self) -> str:
        return _listed(use.what for use in self.uses)

    def as_dict(self) -> dict[str, Any]:
        return {
            "folders": list(dict.fromkeys(str(use.folder) for use in self.uses)),
            "what": self.what,
            "bytes": self.bytes,
            "free_bytes": self.free,
        }

    def problem(self) -> Problem | None:
        """An error if the minimum does not fit, a warning if the expected size does not fit."""
        use = self.largest
        if self.free < self.least:
            certain = _listed(one.what for one in self.uses if one.least)
            message = f"{certain} take at least {size(self.least)}, and {use.folder} has {size(self.free)} free."
            return Problem.error(use.option, "disk_too_small", message, hint="free space, or choose a folder on another disk")
        if self.free < self.bytes:
            message = f"{self.what} need about {size(self.bytes)}, and {use.folder} has {size(self.free)} free."
            hint = "free space, or choose a folder on another disk"
            if use.option == OUTPUT:
                hint = "lower checkpoints_total_limit, or free space"
            return Problem.warning(use.option, "disk_is_tight", message, hint=hint)
        return None


def file_systems(uses: Iterable[DiskUse]) -> list[FileSystem]:
    """The uses that write something, grouped by the disk of their folder."""
    grouped: dict[int, list[DiskUse]] = defaultdict(list)
    for use in uses:
        if use.bytes:
            grouped[nearest_existing(use.folder).stat().st_dev].append(use)
    return [FileSystem(tuple(group), free_bytes(group[0].folder)) for group in grouped.values()]


def nearest_existing(path: Path) -> Path:
    """The path itself, or the closest parent that exists."""
    return next(one for one in (path, *path.parents) if exists(one))


def free_bytes(folder: Path) -> int:
    """Free bytes on the disk of a folder, which need not exist yet."""
    return shutil.disk_usage(nearest_existing(folder)).free


def disk_answer(parts: dict[str, int], disks: Sequence[FileSystem], output_dir: Path) -> dict[str, Any]:
    """The numbers for the API. ``parts`` are bytes by kind; ``free_bytes`` is for the disk of ``output_dir``."""
    text = "; ".join(f"about {size(disk.bytes)} for {disk.what}, {size(disk.free)} are free in {disk.largest.folder}" for disk in disks)
    return {
        **{f"{name}_bytes": number for name, number in parts.items()},
        "bytes": sum(disk.bytes for disk in disks),
        "free_bytes": free_bytes(output_dir),
        "file_systems": [disk.as_dict() for disk in disks],
        "text": text,
    }


def _listed(words: Iterable[str]) -> str:
    *others, last = dict.fromkeys(words)
    return f"{', '.join(others)} and {last}" if others else last
