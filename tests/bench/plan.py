"""The plan of an epoch: how long the first step waits for it, the first step of the next epoch, and what it takes in memory.

Each case is measured in a process of its own: ``python -m tests.bench.plan SAMPLES BUCKETS``.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time

import psutil

from tests.bench.table import Table, highest_resident_bytes
from trainer_engine.batches.sampler import BatchSizes, DataSource, Sampler
from trainer_engine.datasets.samples import CropPlan, Sample
from trainer_engine.datasets.sources.local import LocalSource

SECTION = "plan"
BATCH = 4
CASES = ((200_000, 1), (1_000_000, 50))
AIMS = {1_000_000: "under 2 s and 300 MB"}


def source_of(samples: int, buckets: int) -> DataSource:
    """One dataset of so many samples in buckets of equal size."""
    each, crop, size = samples // buckets, CropPlan("center", 1.0), (64, 64)
    filled = tuple(
        tuple(
            Sample(
                source=LocalSource("/data"),
                name=f"{bucket}/{number}.jpg",
                size_bytes=1,
                version=0,
                width=64,
                height=64,
                resized=size,
                target=size,
                crop=crop,
                bucket=f"{bucket} (64x64)",
                captions=("a caption",),
            )
            for number in range(each)
        )
        for bucket in range(buckets)
    )
    return DataSource("pictures", filled, 0, 1.0)


def measure(samples: int, buckets: int) -> dict[str, float]:
    source = source_of(samples, buckets)
    held = psutil.Process().memory_info().rss
    began = time.perf_counter()
    sampler = Sampler([source], BatchSizes(BATCH, 1), 1, by_size=True)
    sampler.step(0)
    first = time.perf_counter() - began
    grown = max(0, highest_resident_bytes() - held)
    began = time.perf_counter()
    sampler.step(sampler.steps_per_epoch)
    return {"first": first, "next": time.perf_counter() - began, "bytes": grown}


def run(table: Table) -> None:
    for samples, buckets in CASES:
        command = [sys.executable, "-m", "tests.bench.plan", str(samples), str(buckets)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
        name = f"plan of an epoch: {samples:,} samples in {buckets} bucket{'s' if buckets > 1 else ''}, batch {BATCH}"
        value = f"{found['first']:.2f} s, {found['bytes'] / 1e6:.0f} MB; the next epoch's, if it was not made beside: {found['next']:.2f} s"
        table.add(SECTION, name, value, aim=AIMS.get(samples, ""))


if __name__ == "__main__":
    print(json.dumps(measure(int(sys.argv[1]), int(sys.argv[2]))))
