"""Entries that stay in memory: small sets are read from disk once."""

from __future__ import annotations

import threading

from torch import Tensor

RESIDENT_BYTES = 1 << 30
"""What one process keeps of one cache, at most."""


class InMemoryCache:
    """Entries by address until they fill ``limit_bytes``; later ones are not kept. Safe to use from several threads."""

    def __init__(self, limit_bytes: int = RESIDENT_BYTES) -> None:
        self.limit_bytes = limit_bytes
        self.held_bytes = 0
        self._entries: dict[str, dict[str, Tensor]] = {}
        self._lock = threading.Lock()

    def get(self, address: str) -> dict[str, Tensor] | None:
        return self._entries.get(address)

    def keep(self, address: str, entry: dict[str, Tensor]) -> dict[str, Tensor]:
        """The entry itself, for the caller's convenience."""
        size = sum(tensor.nbytes for tensor in entry.values())
        with self._lock:
            if address not in self._entries and self.held_bytes + size <= self.limit_bytes:
                self._entries[address] = entry
                self.held_bytes += size
        return entry
