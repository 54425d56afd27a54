"""Caching and discovery: images a second beside a bare decode-and-encode loop, image headers a second."""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from tests.bench.table import Table, ratio_of
from tests.bench.training import IMAGE_EDGE, bench_options
from tests.helpers.pictures import generate_images
from trainer_engine.caches.latents import cache_latents
from trainer_engine.caches.store import CacheStore
from trainer_engine.config.datasets import parse_dataloader
from trainer_engine.datasets.examine import examine
from trainer_engine.datasets.index import discover
from trainer_engine.datasets.sources.local import LocalSource
from trainer_engine.families.base import Family, load_family
from trainer_engine.families.pixart_sigma.tiny import make_tiny
from trainer_engine.runtime.devices import resolve_devices

IMAGES, ROUNDS, BATCH = 48, 4, 4
HEADERS = 20_000


def bare(family: Family, paths: list[Path]) -> None:
    """Open, convert, encode in batches; nothing is hashed, checked or written."""
    for start in range(0, len(paths), BATCH):
        pictures = [np.asarray(Image.open(path).convert("RGB"), dtype=np.float32) for path in paths[start : start + BATCH]]
        family.encode_images(torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2) / 127.5 - 1)


def caching(table: Table) -> None:
    with tempfile.TemporaryDirectory(prefix="bench-caching-") as folder:
        place = Path(folder)
        make_tiny(place / "model", size="demo")
        paths = generate_images(place / "images", count=IMAGES, size=(IMAGE_EDGE, IMAGE_EDGE))
        options = bench_options(place)
        family = load_family(options, resolve_devices(options, torch.device("cpu")))
        dataloader, _ = parse_dataloader([{"id": "pictures", "type": "local", "instance_data_dir": str(place / "images")}], options)
        samples = examine(dataloader, options, family.spec).sets[0].samples
        bare(family, paths[:BATCH])
        ours, theirs = [], []
        for number in range(ROUNDS):
            began = time.perf_counter()
            store = CacheStore(place / f"cache-{number}")
            cache_latents(family, samples, store, seed=0, batch_size=BATCH, write_batch_size=128, workers=2)
            middle = time.perf_counter()
            bare(family, paths)
            ours.append(middle - began)
            theirs.append(time.perf_counter() - middle)
        rate = IMAGES / sorted(ours)[ROUNDS // 2]
        table.add("caching", f"images a second ({IMAGE_EDGE} px, small autoencoder)", f"{rate:.1f}")
        table.add("caching", "beside a bare decode-and-encode loop", ratio_of(theirs, ours), aim="90 % or better")


def discovery(table: Table) -> None:
    with tempfile.TemporaryDirectory(prefix="bench-discovery-") as folder:
        place = Path(folder)
        (original,) = generate_images(place / "one", count=1, size=(64, 64))
        images = place / "images"
        for number in range(HEADERS):
            target = images / f"{number // 1000:03d}" / f"image_{number:06d}{original.suffix}"
            if number % 1000 == 0:
                target.parent.mkdir(parents=True)
            shutil.copyfile(original, target)
        for words in ("first scan", "unchanged rescan"):
            began = time.perf_counter()
            found = discover(LocalSource(str(images)), index_dir=place / "index")
            rate = len(found.images) / (time.perf_counter() - began)
            table.add("discovery", f"image headers a second, {HEADERS:,} files, {words}", f"{rate:,.0f}")


def run(table: Table) -> None:
    caching(table)
    discovery(table)
