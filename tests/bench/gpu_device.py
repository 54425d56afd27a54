"""What the GPU benchmarks share: the device, the clock, the time limit, and the row of two loops that were timed in turn."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch._dynamo.exc import TorchDynamoException

from tests.bench.table import Table, ratio_of

Work = Callable[[int], None]
"""Takes as many steps as it is asked for."""
WARM_UP = 2
LARGE, SMALL = 8192, 256
"""Edges of the matrices whose product shows the peak, on a GPU and on a CPU."""


@dataclass(frozen=True, kw_only=True)
class Clock:
    """Where steps are timed, and how many."""

    device: torch.device
    steps: int
    """Steps of one timing."""
    rounds: int

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def reset_peak(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()

    def peak_memory(self) -> float:
        """GiB since the last reset; 0 where the device does not count."""
        return torch.cuda.max_memory_allocated() / 2**30 if self.device.type == "cuda" else 0.0


@dataclass(frozen=True, kw_only=True)
class Subject(Clock):
    """A network and its inputs, too."""

    architecture: Mapping[str, Any]
    latent_edge: int
    tokens: int


@dataclass(frozen=True)
class TimeLimit:
    """After ``seconds`` no further case is begun."""

    seconds: float
    began: float = field(default_factory=time.monotonic)

    @property
    def is_reached(self) -> bool:
        return time.monotonic() - self.began >= self.seconds


ENDLESS = TimeLimit(float("inf"))


def attempt(table: Table, section: str, case: str, measure: Callable[[], None], limit: TimeLimit = ENDLESS) -> None:
    """Measure a case; one that the device cannot take, or that no time is left for, gets a row that says so. Memory is freed afterwards."""
    if limit.is_reached:
        table.add(section, case, f"not measured: the limit of {limit.seconds:.0f} s is reached")
        return
    try:
        measure()
    except torch.OutOfMemoryError:
        table.add(section, case, "not measured: the device has too little memory")
    except TorchDynamoException as error:
        table.add(section, case, f"not measured: torch.compile fails ({type(error).__name__})")
    finally:
        gc.collect()
        torch._dynamo.reset()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def timed(clock: Clock, work: Work) -> float:
    """Seconds a step, the device idle before and after."""
    clock.synchronize()
    began = time.perf_counter()
    work(clock.steps)
    clock.synchronize()
    return (time.perf_counter() - began) / clock.steps


def matmul_peak(clock: Clock) -> float:
    """bf16 operations a second that this device reaches on a large product."""
    size = LARGE if clock.device.type == "cuda" else SMALL
    a, b = (torch.randn(size, size, device=clock.device, dtype=torch.bfloat16) for _ in range(2))
    for _ in range(3):
        a @ b
    clock.synchronize()
    began = time.perf_counter()
    for _ in range(20):
        a @ b
    clock.synchronize()
    return 20 * 2 * size**3 / (time.perf_counter() - began)


def add_row(
    table: Table,
    section: str,
    case: str,
    clock: Clock,
    *,
    engine: Work,
    make_bare: Callable[[], Work],
    flops: int,
    peak: float,
    aim: str = "",
) -> None:
    """One row: the engine's step and the bare loop, timed in turn.

    ``flops``: operations of one step; ``peak``: operations a second that the device reaches. The peak memory is the one since the last
    ``reset_peak``, before the bare loop is made.
    """
    engine(WARM_UP)
    memory = clock.peak_memory()
    bare = make_bare()
    bare(WARM_UP)
    pairs = [(timed(clock, engine), timed(clock, bare)) for _ in range(clock.rounds)]
    seconds = statistics.median(pair[0] for pair in pairs)
    share = f"{100 * flops / seconds / peak:.0f} % of the device's measured bf16 peak ({peak / 1e12:.3g} TFLOP/s)"
    speed = ratio_of([pair[1] for pair in pairs], [pair[0] for pair in pairs])
    value = f"{seconds:.3f} s a step; {share}; peak {memory:.1f} GiB"
    table.add(section, case, value, aim=aim, beside=f"bare loop: {speed} of its speed")
