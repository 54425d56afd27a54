"""Remembers the addresses that gave no file, so that a run does not ask each of them again."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path

from trainer_engine.contract.atomic import write_atomically
from trainer_engine.contract.files import read_document, read_small
from trainer_engine.datasets.sources.addresses import hash_of

REMEMBERED_SECONDS = 7 * 24 * 3600.0
"""How long an address that has no file is not asked again, such as one that answers 404."""
REMEMBERED_IF_BUSY_SECONDS = 3600.0
FAILURES = ".addresses.json"
LARGEST_RECORD_BYTES = 1 << 28


class NoFile(Exception):
    """An address gives no file that can be used. The message says why."""

    def __init__(self, reason: str, *, for_now: bool = False) -> None:
        super().__init__(reason)
        self.for_now = for_now
        """Whether it may give one a little later."""


@dataclass
class Failures:
    """The addresses of a folder that gave no file, each with the reason and how long it counts. Kept in a file of the folder."""

    folder: Path
    _known: dict[str, tuple[str, float]] = field(default_factory=dict)
    """Hash of an address -> (reason, end of its time in seconds since 1970)."""

    @classmethod
    def read(cls, folder: Path) -> Failures:
        """A record that is missing or damaged is empty: its addresses are asked again."""
        try:
            document = read_document(read_small(folder / FAILURES, LARGEST_RECORD_BYTES))
            known = {str(key): (str(reason), float(until)) for key, (reason, until) in document.items()}
        except (OSError, ValueError, TypeError, AttributeError):
            known = {}
        return cls(folder, known)

    def reason(self, url: str) -> str:
        """Returns why an address is not asked now, or an empty text."""
        reason, until = self._known.get(hash_of(url), ("", 0.0))
        return reason if time.time() < until else ""

    def add(self, url: str, failure: NoFile) -> None:
        until = time.time() + (REMEMBERED_IF_BUSY_SECONDS if failure.for_now else REMEMBERED_SECONDS)
        self._known[hash_of(url)] = (str(failure), until)

    def write(self) -> None:
        """Raises OSError."""
        now = time.time()
        self._known = {key: found for key, found in self._known.items() if found[1] > now}
        write_atomically(self.folder / FAILURES, json.dumps(self._known).encode())
