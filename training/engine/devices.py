"""Gives each run a GPU of its own where several runs may train at a time and there are several GPUs. No torch, no database.

The processes of the other runs show which GPUs are taken: what they see is in their environment, and ends with them.
"""

from __future__ import annotations

import fcntl
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psutil

from trainer_engine.contract.atomic import PRIVATE_MODE
from trainer_engine.contract.run import RunFolder
from training.engine import process

VISIBLE = "CUDA_VISIBLE_DEVICES"
LOCK = "devices.lock"


def listed_gpus(variables: Mapping[str, str], devices: Path = Path("/dev")) -> tuple[str, ...]:
    """The NVIDIA GPUs that an engine would see, by the names that ``CUDA_VISIBLE_DEVICES`` takes. AMD's are not listed."""
    listed = variables.get(VISIBLE)
    if listed is None:
        # A container keeps the names of the machine's device files, nvidia2 and nvidia3, and CUDA counts from 0 whatever they are.
        count = sum(re.fullmatch(r"nvidia\d+", path.name) is not None for path in devices.glob("nvidia*"))
        return tuple(str(number) for number in range(count))
    names = [name.strip() for name in listed.split(",")]
    return tuple(name for name in names[: names.index("-1") if "-1" in names else len(names)] if name)


def least_used(gpus: tuple[str, ...], others: Iterable[RunFolder]) -> str:
    """The GPU that the fewest other runs of this machine see, the first one of several. A run that sees all counts for each."""
    seen = Counter(name for folder in others for name in _seen_by(folder, gpus))
    return min(gpus, key=lambda name: (seen[name], gpus.index(name)))


def _seen_by(folder: RunFolder, gpus: tuple[str, ...]) -> tuple[str, ...]:
    for found in process.processes_of(folder):
        try:
            variables = found.environ()
        except psutil.Error:
            continue
        return listed_gpus(variables) if VISIBLE in variables else gpus
    return ()


@contextmanager
def one_at_a_time(state: Path) -> Iterator[None]:
    """Let one worker choose a GPU and start its engine, so that the next one sees it taken. Raises OSError."""
    handle = os.open(state / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, PRIVATE_MODE)
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
