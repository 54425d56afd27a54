"""Where a GPU is at hand: what the options that save memory cost, on Flux.1 at full width with an adapter, in less than eight minutes.

The weights are random, so nothing is downloaded. Each row has the step time beside that of the first row, and the peak memory.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch

from tests.bench.gpu_device import ENDLESS, WARM_UP, Subject, TimeLimit, attempt, timed
from tests.bench.gpu_flux import FLUX, Case, engine_steps, that_fits
from tests.bench.table import NOT_MEASURED, Table, ratio_of

SECTION = "options that save memory: Flux.1 at full width, LoRA of rank 16, 1024 px"
SECONDS = 450
"""From the start: when no further case is begun."""
SWAPPED = "musubi_blocks_to_swap"
CASES: Mapping[str, Mapping[str, Any]] = {
    "gradient checkpointing": {},
    "an interval of 2": {"gradient_checkpointing_interval": 2},
    "inputs of blocks on the host": {"gradient_checkpointing_backend": "unsloth", "gradient_checkpointing_offload_prefetch": True},
    "feed-forward parts alone": {"gradient_checkpointing_backend": "torch-ffn"},
    "half of the blocks swapped": {SWAPPED: 28},
    "all blocks swapped": {SWAPPED: 57},
    "groups of two blocks, prefetched": {
        "enable_group_offload": True,
        "group_offload_blocks_per_group": 2,
        "group_offload_use_stream": True,
    },
    "groups of two blocks, not prefetched": {"enable_group_offload": True, "group_offload_blocks_per_group": 2},
    "linear layers streamed (ramtorch)": {"ramtorch": True},
    "the update on the host": {"optimizer_cpu_offload_method": "torchao"},
}
"""What a row is called -> its options. The first row is what the others are compared with."""


def seconds_of(subject: Subject, memory: Mapping[str, Any]) -> tuple[list[float], float]:
    """(seconds a step in each round, GiB at the peak)"""
    subject.reset_peak()
    work, _ = engine_steps(subject, Case("no_change", compiled=False, memory=memory))
    work(WARM_UP)
    return [timed(subject, work) for _ in range(subject.rounds)], subject.peak_memory()


def add_case(table: Table, subject: Subject, words: str, memory: Mapping[str, Any], first: list[float]) -> None:
    """``first`` holds the seconds of the first row, and gets them where it is empty."""
    seconds, peak = seconds_of(subject, memory)
    first.extend([] if first else seconds)
    beside = f"{ratio_of(seconds, first)} of the first row's time"
    table.add(SECTION, words, f"{statistics.median(seconds):.3f} s a step; peak {peak:.1f} GiB", beside=beside)


def measure(table: Table, subject: Subject, cases: Sequence[str] = tuple(CASES), limit: TimeLimit = ENDLESS) -> None:
    """A row for each case."""
    first: list[float] = []
    for words in cases:
        attempt(table, SECTION, words, partial(add_case, table, subject, words, CASES[words], first), limit)


def run(table: Table) -> None:
    """All rows, or one that says that there is no GPU."""
    if not torch.cuda.is_available():
        table.add(SECTION, "needs a GPU", NOT_MEASURED)
        return
    device = torch.device("cuda")
    architecture = that_fits(FLUX, torch.cuda.get_device_properties(device).total_memory)
    subject = Subject(device=device, architecture=architecture, latent_edge=128, tokens=512, steps=3, rounds=3)
    measure(table, subject, limit=TimeLimit(SECONDS))


if __name__ == "__main__":
    run(Table())
