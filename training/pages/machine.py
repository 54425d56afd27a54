"""Devices, memory and disk of this machine, as far as the system and NVIDIA's driver report them."""

from __future__ import annotations

import shutil
import subprocess
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import psutil
from django.conf import settings

from training.pages.numbers import bytes_text

FIELDS = ("name", "memory.used", "memory.total", "utilization.gpu", "temperature.gpu")
MEBIBYTE = 1024**2
FRESH_SECONDS = 3
LONGEST_SECONDS = 2.0
"""Time that the driver's tool gets. A page is not delayed longer than that."""


@dataclass(frozen=True, kw_only=True)
class Meter:
    """One thing that can run out."""

    name: str
    used: float
    """In percent."""
    text: str

    @property
    def is_scarce(self) -> bool:
        return self.used >= 90


def meters() -> list[Meter]:
    """Each GPU, the memory of the host, and the disk of the server's home."""
    memory = psutil.virtual_memory()
    free = f"{bytes_text(memory.available)} of {bytes_text(memory.total)} free"
    found = [*gpus(int(time.monotonic() // FRESH_SECONDS)), Meter(name="Memory", used=memory.percent, text=free)]
    return [*found, *disk(settings.HOME)]


def disk(home: Path) -> list[Meter]:
    """The disk that holds the server's home; nothing if it cannot be reached."""
    try:
        usage = shutil.disk_usage(home)
    except OSError:
        return []
    used = 100 * (usage.total - usage.free) / max(1, usage.total)
    return [Meter(name="Disk", used=used, text=f"{bytes_text(usage.free)} of {bytes_text(usage.total)} free")]


@lru_cache(maxsize=1)
def gpus(moment: int) -> tuple[Meter, ...]:
    """The GPUs that ``nvidia-smi`` lists; it runs once for each ``moment``. Without the tool there are none."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ()
    command = [tool, f"--query-gpu={','.join(FIELDS)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, timeout=LONGEST_SECONDS, check=True, text=True, errors="replace")
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(meter for line in done.stdout.splitlines() if (meter := gpu_meter(line)) is not None)


def gpu_meter(line: str) -> Meter | None:
    """A line of ``nvidia-smi``; None if it gives no memory. Load and temperature are left out if the driver does not report them."""
    cells = [cell.strip() for cell in line.rsplit(",", len(FIELDS) - 1)]
    if len(cells) != len(FIELDS) or not (cells[1].isdecimal() and cells[2].isdecimal() and int(cells[2])):
        return None
    used, total = int(cells[1]), int(cells[2])
    parts = [f"{bytes_text(used * MEBIBYTE)} of {bytes_text(total * MEBIBYTE)} used"]
    parts += [f"{cells[3]} % busy"] if cells[3].isdecimal() else []
    parts += [f"{cells[4]} °C"] if cells[4].isdecimal() else []
    return Meter(name=cells[0], used=100 * used / total, text=", ".join(parts))
