"""For how long a checkpoint stops the steps of a run over 100,000 samples, beside one over a few."""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.bench import saving
from tests.bench.table import Table, milliseconds
from tests.helpers.pictures import generate_images
from trainer_engine.batches.sampler import DataSource
from trainer_engine.families.flux.tiny import make_tiny
from trainer_engine.loop import assemble
from trainer_engine.loop.datasets import Preparation
from trainer_engine.loop.prepared import Prepared

SECTION = "stall"
SAMPLES = 100_000
KIND = "an adapter"


@contextmanager
def as_if(samples: int) -> Iterator[None]:
    """Runs that are assembled in the block have so many samples: the images that there are, under further names."""

    class Multiplied(Preparation):
        def run(self, *arguments: object) -> Prepared:
            prepared = super().run(*arguments)  # type: ignore[arg-type]
            return dataclasses.replace(prepared, sources=tuple(multiplied(one, prepared, samples) for one in prepared.sources))

    before = assemble.Preparation
    assemble.Preparation = Multiplied  # type: ignore[misc]
    try:
        yield
    finally:
        assemble.Preparation = before  # type: ignore[misc]


def multiplied(source: DataSource, prepared: Prepared, samples: int) -> DataSource:
    """The samples of a dataset again and again; copies share the latents of their originals."""
    times = -(-samples // source.samples)
    addresses = prepared.latents[source.id].addresses
    buckets = []
    for bucket in source.buckets:
        copies = [one._replace(name=f"{number}/{one.name}") for one in bucket for number in range(times)]
        addresses.update({copy.name: addresses[copy.name.partition("/")[2]] for copy in copies})
        buckets.append(tuple(copies))
    return dataclasses.replace(source, buckets=tuple(buckets))


def stall(place: Path, samples: int) -> float:
    """Seconds that steps stand still for a checkpoint that is written beside them, median."""
    with as_if(samples):
        trainer, watching = saving.prepared(place, {**saving.KINDS[KIND], "output_dir": str(place / f"output-{samples}")})
    trainer.fit()
    return statistics.median(watching.stalls[True])


def run(table: Table) -> None:
    with tempfile.TemporaryDirectory(prefix="bench-stall-") as folder:
        place = Path(folder)
        make_tiny(place / "model", size="demo")
        generate_images(place / "images", count=16, size=(saving.EDGE, saving.EDGE))
        few, many = stall(place, 16), stall(place, SAMPLES)
    value = f"{milliseconds(many)}, with 16 samples {milliseconds(few)}"
    table.add(SECTION, f"steps stand still for a checkpoint of an adapter (small Flux) with {SAMPLES:,} samples", value)
