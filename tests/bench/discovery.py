"""A dataset of many small files: the first and the second ``validate``, what it leaves in the server, and discovery in the engine.

``make bench`` takes 100,000 images with captions in 200 folders. The processor's seconds say more than the clock on a busy machine.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from environments.paths import Home
from environments.resolve.run import resolve_run
from tests.bench.table import Table
from tests.helpers.pictures import generate_images
from trainer_engine.config.datasets import parse_dataloader
from trainer_engine.config.families import find_spec
from trainer_engine.config.parse import parse_options
from trainer_engine.config.run_paths import index_folder
from trainer_engine.datasets.examine import examine
from trainer_engine.datasets.index_file import Indexes
from training.preflight.apart import examine_run_apart

SECTION = "discovery"
IMAGES, FOLDERS = 100_000, 200
AIMS = {"first validate": "under 8 s", "second validate": "under 2 s"}


@dataclass(frozen=True)
class Took:
    """The time of one measurement."""

    wall: float
    processor: float
    """Seconds of this process and of its children."""

    @property
    def text(self) -> str:
        return f"{self.wall:.1f} s ({self.processor:.1f} s of a processor)"


def make_set(place: Path, images: int, folders: int) -> Path:
    """Writes a dataset: one small image under many names, each with some bytes behind its pixels and a caption of its own."""
    [original] = generate_images(place / "one", count=1, size=(64, 64))
    content, root = original.read_bytes(), place / "images"
    for number in range(images):
        folder = root / f"{number % folders:03d}"
        if number < folders:
            folder.mkdir(parents=True)
        (folder / f"{number:06d}{original.suffix}").write_bytes(content + b"%d" % number)
        (folder / f"{number:06d}.txt").write_text(f"the image with the number {number}, and some words more that captions have\n")
    return root


def timed(measured: Callable[[], Any]) -> Took:
    began, before = time.perf_counter(), os.times()
    measured()
    after = os.times()
    used = [getattr(after, name) - getattr(before, name) for name in ("user", "system", "children_user", "children_system")]
    return Took(time.perf_counter() - began, sum(used))


def configuration(place: Path, images: Path) -> dict[str, Any]:
    entry = {"id": "images", "instance_data_dir": str(images), "caption_strategy": "textfile", "resolution": 64, "resolution_type": "pixel"}
    for folder in ("config", "state"):
        (place / folder).mkdir(exist_ok=True)
    (place / "config/sets.json").write_text(json.dumps([entry]))
    return {
        "model_family": "pixart_sigma",
        "model_type": "full",
        "output_dir": str(place / "output"),
        "validation_disable": True,
        "data_backend_config": str(place / "config/sets.json"),
        "max_train_steps": 9,
        "num_train_epochs": 0,
        "train_batch_size": 2,
    }


def measure(table: Table, place: Path, *, images: int = IMAGES, folders: int = FOLDERS) -> None:
    values = configuration(place, make_set(place, images, folders))
    home, process = Home(place, any_place=True), psutil.Process()
    resolved, before = resolve_run(home, {}, values), psutil.Process().memory_info().rss
    title = f"{images:,} images with captions in {folders} folders"
    for name in ("first validate", "second validate"):
        took = timed(lambda: examine_run_apart(resolved, home))
        table.add(SECTION, f"{name}, {title}", took.text, aim=AIMS[name])
    grown = (process.memory_info().rss - before) / 1e6
    table.add(SECTION, "the server's memory after both", f"{grown:+.1f} MB", aim="no larger")
    options = parse_options(values)
    spec, (dataloader, _) = find_spec(options.model.model_family), parse_dataloader(resolved.datasets, options)
    assert spec is not None
    for name, indexes in (("engine's discovery, nothing known", Indexes()), ("after validate", _known(place, options))):
        took = timed(lambda: examine(dataloader, options, spec, index_dir=indexes))
        table.add(SECTION, f"{name}, {title}", took.text)


def _known(place: Path, options: Any) -> Indexes:
    return Indexes(index_folder(options), (place / "state/index",))


def run(table: Table) -> None:
    with tempfile.TemporaryDirectory(prefix="bench-discovery-") as folder:
        measure(table, Path(folder))
