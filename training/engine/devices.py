"""Gives each run a GPU of its own where several runs may train at a time and there are several GPUs. No torch, no database.

The engines of this machine show which GPUs are taken, also those that a shell or another server has started: what they see is in their
environment, and ends with them.
"""

from __future__ import annotations

import fcntl
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from trainer_engine.contract.atomic import PRIVATE_MODE

CUDA, HIP, ROCR = "CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"
LOCK = "devices.lock"
DEVICES = Path("/dev")


@dataclass(frozen=True)
class VisibleGpus:
    """The GPUs that an engine would see, and the variable that limits them."""

    variable: str
    names: tuple[str, ...]
    """As the variable takes them."""
    cards: tuple[str, ...]
    """The card of the machine behind each name. Names of two processes may differ for one card, and be the same for two."""

    def only(self, name: str) -> dict[str, str]:
        """The environment variables with which an engine sees this one alone."""
        return {self.variable: name}


def gpus_of(variables: Mapping[str, str], devices: Path | None = None) -> VisibleGpus:
    """The GPUs that an engine with these environment variables would see, by the files of their devices in ``/dev``."""
    devices = devices or DEVICES
    # A container keeps the names of the machine's device files, nvidia2 and nvidia3, and CUDA counts from 0 whatever they are.
    nvidia = sum(re.fullmatch(r"nvidia\d+", path.name) is not None for path in devices.glob("nvidia*"))
    has_amd = (devices / "kfd").exists() or (CUDA not in variables and not {HIP, ROCR}.isdisjoint(variables))
    if not nvidia and has_amd:
        return _of_amd(variables, len(list((devices / "dri").glob("renderD*"))))
    names = _listed(variables[CUDA]) if CUDA in variables else _counted(nvidia)
    return VisibleGpus(CUDA, names, names)


def _of_amd(variables: Mapping[str, str], count: int) -> VisibleGpus:
    """``ROCR_VISIBLE_DEVICES`` leaves some cards; HIP counts and chooses among these. Without a variable of its own it reads CUDA's."""
    cards = _listed(variables[ROCR]) if ROCR in variables else _counted(count)
    chosen = variables.get(HIP, variables.get(CUDA))
    names = _counted(len(cards)) if chosen is None else _listed(chosen)
    return VisibleGpus(HIP, names, tuple(cards[int(name)] if name.isdecimal() and int(name) < len(cards) else name for name in names))


def _listed(text: str) -> tuple[str, ...]:
    """The names in the text of a variable. A -1 among them ends the list, as the drivers have it."""
    names = [name.strip() for name in text.split(",")]
    return tuple(name for name in names[: names.index("-1") if "-1" in names else len(names)] if name)


def _counted(count: int) -> tuple[str, ...]:
    return tuple(str(number) for number in range(count))


def least_used(gpus: VisibleGpus, engines: Iterable[Mapping[str, str]]) -> str:
    """The name of the GPU that the fewest engines see, by their environments, the first one of several.

    An engine that sees all counts for each.
    """
    seen = Counter(card for variables in engines for card in _seen(variables, gpus))
    places = range(len(gpus.names))
    return gpus.names[min(places, key=lambda place: (seen[gpus.cards[place]], place))]


def _seen(variables: Mapping[str, str], gpus: VisibleGpus) -> tuple[str, ...]:
    return gpus.cards if {CUDA, HIP, ROCR}.isdisjoint(variables) else gpus_of(variables).cards


@contextmanager
def one_at_a_time(state: Path) -> Iterator[None]:
    """Let one worker choose a GPU and start its engine, so that the next one sees it taken. Raises OSError."""
    handle = os.open(state / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, PRIVATE_MODE)
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
