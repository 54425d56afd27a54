"""Writes cache entries in groups, in a thread, so that the encoder does not wait for the disk."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from torch import Tensor

from trainer_engine.caches.store import CacheStore


class GroupWriter:
    """Collects entries and writes every ``group_size`` of them together. Leaving the block writes the rest, also after an error.

    At most one group is written while the next is collected. A disk error is raised by a later ``add`` or at the end of the block.
    All groups go to a shard that no other process writes to.
    """

    def __init__(self, store: CacheStore, group_size: int) -> None:
        self.store = store
        self.group_size = group_size
        self._shard = store.writer()
        self._group: dict[str, Mapping[str, Tensor]] = {}
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="cache-writer")
        self._writing: Future[None] | None = None

    def __enter__(self) -> GroupWriter:
        return self

    def others_write(self) -> bool:
        """Whether another process is writing to the same cache. It creates the shard to write to."""
        return self._shard.others_write()

    def add(self, address: str, tensors: Mapping[str, Tensor]) -> None:
        """Add an entry. Raises DiskFull if an earlier group could not be written."""
        self._group[address] = tensors
        if len(self._group) >= self.group_size:
            self._hand_over()

    def _hand_over(self) -> None:
        self._wait()
        group, self._group = self._group, {}
        if group:
            self._writing = self._pool.submit(self.store.put_all, group, self._shard)

    def _wait(self) -> None:
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self._hand_over()
            self._wait()
        finally:
            self._pool.shutdown()
            self._shard.close()
