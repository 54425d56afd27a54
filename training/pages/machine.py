"""Devices, memory and disk of this machine, as bars of the page."""

from __future__ import annotations

from dataclasses import dataclass

from django.conf import settings

from training.engine import hardware
from training.engine.hardware import Gpu, Space
from training.pages.numbers import bytes_text


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
    """Each GPU, the memory of the host, and the disk of the server's home if it can be reached."""
    disk = hardware.disk(settings.HOME)
    spaces = {"Memory": hardware.memory(), **({"Disk": disk} if disk else {})}
    return [*(gpu_meter(gpu) for gpu in hardware.DRIVER.gpus()), *(space_meter(name, space) for name, space in spaces.items())]


def space_meter(name: str, space: Space) -> Meter:
    return Meter(name=name, used=space.used_percent, text=f"{bytes_text(space.free_bytes)} of {bytes_text(space.total_bytes)} free")


def gpu_meter(gpu: Gpu) -> Meter:
    """Load and temperature are left out if the driver does not report them."""
    parts = [f"{bytes_text(gpu.used_bytes)} of {bytes_text(gpu.total_bytes)} used"]
    parts += [f"{gpu.busy_percent} % busy"] if gpu.busy_percent is not None else []
    parts += [f"{gpu.temperature_celsius} °C"] if gpu.temperature_celsius is not None else []
    return Meter(name=gpu.name, used=100 * gpu.used_bytes / gpu.total_bytes, text=", ".join(parts))
