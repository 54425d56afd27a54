"""How the processes of a run share the work of filling a cache."""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Generic, Protocol, TypeVar

T = TypeVar("T")
Item = TypeVar("Item", bound=Hashable)


class Ranks(Protocol):
    """The methods of ``Processes`` that a cache needs."""

    @property
    def rank(self) -> int: ...

    @property
    def count(self) -> int: ...

    def wait(self) -> None: ...

    def gather(self, mine: bytes) -> list[bytes]: ...

    def first_then_others(self, work: Callable[[], T]) -> T: ...


class Alone:
    """A run of one process."""

    rank = 0
    count = 1

    def wait(self) -> None:
        return

    def gather(self, mine: bytes) -> list[bytes]:
        return [mine]

    def first_then_others(self, work: Callable[[], T]) -> T:
        return work()


ALONE = Alone()


class Share(Generic[Item]):
    """The part of some items that one process works on. It follows from their order alone, which is the same in every process."""

    def __init__(self, ranks: Ranks, items: Sequence[Item]) -> None:
        self.mine = items[ranks.rank :: ranks.count]
        self._mine = set(self.mine) if ranks.count > 1 else None

    def of(self, some: Sequence[Item]) -> list[Item]:
        """Those of ``some`` items that are this process's."""
        return [item for item in some if self._mine is None or item in self._mine]


def exchange(ranks: Ranks, mine: Any) -> list[Any]:
    """A JSON value of every process, in order of rank. Blocks until each has called it."""
    return [json.loads(text) for text in ranks.gather(json.dumps(mine).encode())]
