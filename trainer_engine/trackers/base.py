"""What a tracker can be told."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class RunFacts:
    """What a tracker files the run under."""

    project: str
    name: str
    folder: Path
    """Of the tracker's own files; it exists once a tracker is made."""
    settings: Mapping[str, Any]
    """Options of the run that differ from their defaults."""
    is_online: bool
    """Whether there is a login for trackers that need one."""


class Tracker(ABC):
    """Made, told and closed in a thread of its own; whatever it raises ends its work and nothing else."""

    @abstractmethod
    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers of an optimizer step."""

    @abstractmethod
    def image(self, step: int, title: str, path: Path, caption: str) -> None:
        """A validation image, as a PNG file."""

    @abstractmethod
    def close(self) -> None:
        """Everything told is written when this returns."""
