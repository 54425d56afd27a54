"""What the kernel lets this process have of the host's memory: containers and schedulers such as Slurm allow less than there is."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

MOUNT = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")
FILES = (("memory.max", "memory.current", "inactive_file"), ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"))
"""Limit, use, and what ``memory.stat`` calls the cache that is given back when memory is short; of version 2, and of version 1."""


def memory_left(mount: Path = MOUNT, own: Path = OWN) -> float:
    """Bytes that may still be taken: of the tightest group that this process is in; infinite where none has a limit that can be read."""
    return min((left for folder in _groups(mount, own) for left in _left(folder)), default=math.inf)


def _groups(mount: Path, own: Path) -> Iterator[Path]:
    """The group of this process and those above it. In a container the upper ones may be all that is seen."""
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        top = mount / "memory" if controllers else mount
        group = top / path.lstrip("/")
        yield from (folder for folder in (group, *group.parents) if folder.is_relative_to(top))


def _left(folder: Path) -> Iterator[int]:
    for limit, used, cache in FILES:
        try:
            stat = dict(line.split(" ", 1) for line in (folder / "memory.stat").read_text().splitlines())
            yield int((folder / limit).read_text()) - int((folder / used).read_text()) + int(stat[cache])
        except (OSError, ValueError, KeyError):  # of the other version, or without a limit
            continue
