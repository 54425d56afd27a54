"""Groups of processes that work on the same samples, each on a part of the tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed


@dataclass(frozen=True)
class Group:
    """The group of this process. A run without context parallelism has groups of one."""

    index: int
    """Number of the group among those of the run."""
    count: int
    """Groups of the run."""
    size: int = 1
    """Processes of a group."""
    place: int = 0
    """Number of this process in its group."""
    control: torch.distributed.ProcessGroup | None = None
    """Carries messages between the processes of the group on the CPU; None in a group of one."""

    @property
    def is_first(self) -> bool:
        """Whether this process speaks for its group: it writes the files and reports the numbers that all of the group have."""
        return self.place == 0

    def any_of(self, flag: bool) -> bool:
        """Whether the flag is true on a process of the group. Blocks until each of them has called it."""
        if self.control is None:
            return flag
        count = torch.tensor([flag], dtype=torch.int32)
        torch.distributed.all_reduce(count, group=self.control)
        return bool(count)

    def meet(self) -> None:
        """Wait for the other processes of the group, as long as it takes."""
        self.any_of(False)

    def agreed(self, question: Callable[[], bool]) -> Callable[[], bool]:
        """A question that all processes of the group answer alike: with yes if one of them does. Each has to ask it as often."""
        return lambda: self.any_of(question())


ALONE = Group(index=0, count=1)
"""The group of the only process of a run."""


def make_group(rank: int, processes: int, size: int, timeout: timedelta) -> Group:
    """The group of the process ``rank``. Neighbours are in one group, so that a group does not reach over machines if it fits into one.

    Every process of the run has to call it.
    """
    control = None
    for first in range(0, processes if size > 1 else 0, size):
        members = list(range(first, first + size))
        made = torch.distributed.new_group(members, timeout=timeout, backend="gloo")
        control = made if rank in members else control
    return Group(index=rank // size, count=max(1, processes // size), size=size, place=rank % size, control=control)
