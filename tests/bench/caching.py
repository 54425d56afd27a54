"""Caching and discovery: images a second beside a bare decode-and-encode loop, cache entries and image headers a second."""

from __future__ import annotations

import random
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
from trainer_engine.caches.store import CacheStore, address_of
from trainer_engine.config.datasets import parse_dataloader
from trainer_engine.datasets.examine import examine
from trainer_engine.datasets.index import discover
from trainer_engine.datasets.sources.local import LocalSource
from trainer_engine.families.base import Family
from trainer_engine.families.load import load_family
from trainer_engine.families.pixart_sigma.tiny import make_tiny
from trainer_engine.runtime.devices import resolve_devices

IMAGES, ROUNDS, BATCH = 48, 4, 4
HEADERS = 20_000
ENTRIES, READ, STOCK = 20_000, 10_000, 10_000
"""Entries of a few hundred numbers, as latents of 64 px are."""


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


def entries(table: Table) -> None:
    """The store alone: entries written, counted and read a second. Uses only what every version of the store has."""
    with tempfile.TemporaryDirectory(prefix="bench-entries-") as folder:
        addresses = [address_of("bench", number=number) for number in range(ENTRIES)]
        store = CacheStore(Path(folder) / "cache")
        began = time.perf_counter()
        for start in range(0, ENTRIES, 128):
            store.put_all({address: {"latents": torch.zeros(4, 8, 8)} for address in addresses[start : start + 128]})
        table.add("caching", f"entries written a second, {ENTRIES:,} small ones", f"{ENTRIES / (time.perf_counter() - began):,.0f}")
        files = sum(1 for path in Path(folder).rglob("*") if path.is_file())
        table.add("caching", f"files of {ENTRIES:,} entries", f"{files:,}", aim="200 for 100,000 latents of 1024 px")
        store = CacheStore(Path(folder) / "cache")
        began = time.perf_counter()
        assert all(map(store.holds, addresses))
        table.add("caching", f"taking stock of {ENTRIES:,} entries", f"{(time.perf_counter() - began) * 1000:,.0f} ms")
        chosen = random.Random(1).sample(addresses, READ)
        rates = []
        for _ in range(ROUNDS):
            began = time.perf_counter()
            for address in chosen:
                store.get(address)
            rates.append(READ / (time.perf_counter() - began))
        table.add("caching", "small entries read a second, in any order", f"{sorted(rates)[ROUNDS // 2]:,.0f}", aim="40,000")


def stock(table: Table) -> None:
    """A resumed run: its latents are all there, and it finds them."""
    with tempfile.TemporaryDirectory(prefix="bench-stock-") as folder:
        place = Path(folder)
        make_tiny(place / "model", size="demo")
        images = place / "images"
        images.mkdir()
        (original,) = generate_images(place / "one", count=1, size=(64, 64))
        content = original.read_bytes()
        for number in range(STOCK):
            (images / f"{number:06d}{original.suffix}").write_bytes(content + b"%d" % number)
        options = bench_options(place)
        family = load_family(options, resolve_devices(options, torch.device("cpu")))
        dataloader, _ = parse_dataloader([{"id": "pictures", "type": "local", "instance_data_dir": str(images)}], options)
        samples = examine(dataloader, options, family.spec).sets[0].samples
        how = {"seed": 0, "batch_size": BATCH, "write_batch_size": 128, "workers": 2}
        cache = cache_latents(family, samples, CacheStore(place / "cache"), should_stop=lambda: True, **how)
        store = CacheStore(place / "cache")
        store.put_all({address: {"latents": torch.zeros(4, 8, 8)} for address in cache.addresses.values()})
        began = time.perf_counter()
        cache = cache_latents(family, samples, CacheStore(place / "cache"), **how)
        assert (cache.made, cache.reused) == (0, STOCK)
        table.add("caching", f"finding the latents of {STOCK:,} samples again", f"{time.perf_counter() - began:.2f} s")


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
    entries(table)
    stock(table)
    discovery(table)
