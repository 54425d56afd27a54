"""The order of samples: planning an epoch, and what a checkpoint says of 100,000 samples."""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from pathlib import Path

import psutil

from tests.bench.table import Table
from trainer_engine.batches.sampler import DataSource, Layout, Sampler
from trainer_engine.datasets.samples import CropPlan, Sample

BATCH = 4
CASES = ((100_000, 50), (200_000, 1), (1_000_000, 50))


def source_of(count: int, buckets: int) -> DataSource:
    """One dataset of equally large buckets."""
    crop, size, captions = CropPlan("center", 1.0), (64, 64), ("a caption",)

    def sample(bucket: int, number: int) -> Sample:
        return Sample("/data", f"{bucket}/{number:07}.png", 1, 0, 64, 64, size, size, crop, "1 (64x64)", captions)

    return DataSource("set", tuple(tuple(sample(bucket, n) for n in range(count // buckets)) for bucket in range(buckets)), 1, 1.0)


def plan(count: int, buckets: int) -> tuple[float, float, float]:
    """(seconds for the first step, seconds for a planned one, MB that the plan takes besides the samples)."""
    sampler = Sampler((source_of(count, buckets),), Layout(BATCH, 1), 1, by_size=True)
    process, began = psutil.Process(), time.perf_counter()
    before = process.memory_info().rss
    sampler.step(0)
    first = time.perf_counter() - began
    held, began = process.memory_info().rss - before, time.perf_counter()
    for step in range(1, 1001):
        sampler.step(step)
    return first, (time.perf_counter() - began) / 1000, held / 1e6


def names_of_samples() -> tuple[float, float, float]:
    """(seconds once in a run, seconds in each checkpoint, MB) of ``samples.json`` for 100,000 samples."""
    from trainer_engine.checkpoints import FixedFile  # torch: only in a process of its own

    source = source_of(100_000, 50)
    names = {source.id: {sample.name: f"{number:016x}" for number, sample in enumerate(s for bucket in source.buckets for s in bucket)}}
    began = time.perf_counter()
    file = FixedFile.of_json(names)
    once, began = time.perf_counter() - began, time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="bench-order-") as folder:
        (Path(folder) / "samples.json").write_bytes(file.content)
    return once, time.perf_counter() - began, len(file.content) / 1e6


def run(table: Table) -> None:
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        for count, buckets in CASES:
            first, step, megabytes = pool.apply(plan, (count, buckets))
            named = f"{count:,} samples in {buckets} bucket{'s' if buckets > 1 else ''}"
            table.add("order", f"plan of an epoch, {named}", f"{first:.2f} s, {megabytes:.0f} MB", aim="2 s, 300 MB for a million")
            table.add("order", f"a planned step, {named}", f"{1e6 * step:.0f} us")
        once, each, megabytes = pool.apply(names_of_samples)
        table.add("order", "samples.json of 100,000 samples: once in a run, in each checkpoint", f"{once:.2f} s, {1e3 * each:.1f} ms")
        table.add("order", "samples.json of 100,000 samples, size", f"{megabytes:.1f} MB")
