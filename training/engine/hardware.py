"""What this machine has and how busy it is, as far as the system and NVIDIA's driver report it. No torch."""

from __future__ import annotations

import math
import platform
import shutil
import subprocess
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import psutil

FIELDS = ("name", "memory.used", "memory.total", "utilization.gpu", "temperature.gpu", "driver_version")
MEBIBYTE = 1024**2
FRESH_SECONDS = 3
LONGEST_SECONDS = 2.0
"""Time that the driver's tool gets. A request is not delayed longer than that."""


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """A GPU. What its driver does not report is None."""

    name: str
    used_bytes: int
    total_bytes: int
    busy_percent: int | None
    temperature_celsius: int | None
    driver: str


@dataclass(frozen=True, kw_only=True)
class Space:
    """Memory, or a disk."""

    free_bytes: int
    total_bytes: int

    @property
    def used_percent(self) -> float:
        return 100 * (self.total_bytes - self.free_bytes) / max(1, self.total_bytes)


@dataclass(frozen=True, kw_only=True)
class Cpu:
    """The processor."""

    name: str
    cores: int
    load: float
    """Processes that computed or waited for it, on average over the last minute."""


def cpu() -> Cpu:
    return Cpu(name=platform.processor() or platform.machine(), cores=psutil.cpu_count() or 1, load=round(psutil.getloadavg()[0], 2))


def memory() -> Space:
    """The memory of the host; what can be had without swapping is free."""
    found = psutil.virtual_memory()
    return Space(free_bytes=found.available, total_bytes=found.total)


def disk(folder: Path) -> Space | None:
    """The disk that holds a folder; None if it cannot be reached."""
    try:
        usage = shutil.disk_usage(folder)
    except OSError:
        return None
    return Space(free_bytes=usage.free, total_bytes=usage.total)


class Driver:
    """Asks NVIDIA's driver for the GPUs, at most every ``FRESH_SECONDS`` and by one question at a time.

    A driver that hangs, as after a GPU has fallen off the bus, delays one request for ``LONGEST_SECONDS``; others get the last answer.
    """

    def __init__(self) -> None:
        self._asking = threading.Lock()
        self._asked_at = -math.inf
        self._last: tuple[Gpu, ...] = ()

    def gpus(self) -> tuple[Gpu, ...]:
        """The GPUs that ``nvidia-smi`` lists. Without the tool there are none."""
        if time.monotonic() - self._asked_at >= FRESH_SECONDS and self._asking.acquire(blocking=False):
            asking = threading.Thread(target=self._ask, name="nvidia-smi", daemon=True)
            asking.start()
            asking.join(LONGEST_SECONDS)
        return self._last

    def _ask(self) -> None:
        try:
            self._last = listed()
            self._asked_at = time.monotonic()
        finally:
            self._asking.release()


DRIVER = Driver()


def listed() -> tuple[Gpu, ...]:
    """The GPUs that ``nvidia-smi`` lists now; none if it fails or takes too long."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ()
    command = [tool, f"--query-gpu={','.join(FIELDS)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, timeout=LONGEST_SECONDS, check=True, text=True, errors="replace")
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(found for line in done.stdout.splitlines() if (found := gpu_of(line)) is not None)


def gpu_of(line: str) -> Gpu | None:
    """A line of ``nvidia-smi``; None if it gives no memory."""
    cells = [cell.strip() for cell in line.rsplit(",", len(FIELDS) - 1)]
    if len(cells) != len(FIELDS) or not (cells[1].isdecimal() and cells[2].isdecimal() and int(cells[2])):
        return None
    name, used, total, busy, degrees, driver = cells
    return Gpu(
        name=name,
        used_bytes=int(used) * MEBIBYTE,
        total_bytes=int(total) * MEBIBYTE,
        busy_percent=int(busy) if busy.isdecimal() else None,
        temperature_celsius=int(degrees) if degrees.isdecimal() else None,
        driver=driver,
    )


def versions(names: Iterable[str]) -> dict[str, str | None]:
    """Name of a package -> its installed version; None if it is not installed. Imports nothing."""
    found: dict[str, str | None] = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found
