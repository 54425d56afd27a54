"""Caches image latents. Files are hashed and decoded in threads while the autoencoder encodes the batch before."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from torch import Tensor

from trainer_engine.caches.decoding import decoded_batches, pixels_made_from, sample_pixels
from trainer_engine.caches.encoding import BatchEncoder
from trainer_engine.caches.store import CacheStore, InMemoryCache, address_of
from trainer_engine.caches.writer import GroupWriter
from trainer_engine.datasets.samples import Sample
from trainer_engine.families.base import Family
from trainer_engine.runtime.stages import Advance

THREADS_PER_CORE = 2


class LatentCache:
    """The latents of the samples of one image set. ``read`` is fast and thread-safe."""

    def __init__(self, family: Family, store: CacheStore, seed: int) -> None:
        self.family = family
        self.store = store
        self.seed = seed
        self.addresses: dict[str, str] = {}
        """Name of a sample -> address of its entry, for every usable sample."""
        self.contents: dict[str, str] = {}
        """Name of a sample -> sha256 of its file, for every readable file."""
        self.left_out: list[tuple[Sample, str]] = []
        """Samples that cannot be used, with the reason."""
        self.made = 0
        self.reused = 0
        self.stopped = False
        """Whether ``should_stop`` ended the caching early."""
        self._fingerprint = family.image_fingerprint(store.hashes)
        self._in_memory = InMemoryCache()
        self._encoding = threading.Lock()

    def address(self, sample: Sample) -> str:
        """The address of the entry: it depends on the file's bytes, the geometry and the autoencoder. Raises OSError."""
        self.contents[sample.name] = content = self.store.hashes.of_entry(sample.source, sample.name)
        return address_of("latents", **pixels_made_from(sample, content, self.seed), encoder=self._fingerprint)

    def read(self, sample: Sample) -> Tensor:
        """The scaled latents (C, h, w), float32 on the CPU. A missing or damaged entry is computed again, which loads the autoencoder.

        Raises KeyError for a sample that was left out, BrokenImage if the image file is gone too.
        """
        address = self.addresses[sample.name]
        known = self._in_memory.get(address) or self.store.get(address)
        return self._in_memory.keep(address, known or self._recompute(sample, address))["latents"]

    def _recompute(self, sample: Sample, address: str) -> dict[str, Tensor]:
        pixels = sample_pixels(sample, self.seed)
        with self._encoding:
            latents = self.family.encode_images(pixels[None])[0]
            self.family.free_encoders()
        self.store.put(address, {"latents": latents})
        return {"latents": latents}

    def leave_out(self, sample: Sample, reason: str) -> None:
        """Exclude a sample from training."""
        self.addresses.pop(sample.name, None)
        self.left_out.append((sample, reason))


def cache_latents(
    family: Family,
    samples: Sequence[Sample],
    store: CacheStore,
    *,
    seed: int,
    batch_size: int,
    write_batch_size: int,
    workers: int,
    on_progress: Advance = lambda done, total: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> LatentCache:
    """Compute the missing latents of an image set; the autoencoder is loaded only if some are missing.

    Call ``family.free_encoders`` after all caches are made. ``seed`` places random crops. ``workers`` threads decode. Entries are written
    in groups of ``write_batch_size``, so that an interrupted run continues where it stopped. Images that cannot be read, and images whose
    latents are unusable also in float32, are left out. Raises ModelUnavailable, DiskFull, OutOfMemory.
    """
    cache = LatentCache(family, store, seed)
    workers = min(workers, THREADS_PER_CORE * (os.cpu_count() or 1))
    missing = _take_stock(cache, samples, workers)
    done = len(samples) - len(missing)
    on_progress(done, len(samples))
    encoder = BatchEncoder(family)
    with GroupWriter(store, write_batch_size) as writer:
        for batch in decoded_batches(missing, seed=seed, batch_size=batch_size, workers=workers):
            if should_stop():
                cache.stopped = True
                break
            for sample, reason in batch.broken:
                cache.leave_out(sample, reason)
            for sample, result in zip(batch.samples, encoder.encode(batch.pixels), strict=True):
                if isinstance(result, str):
                    cache.leave_out(sample, result)
                else:
                    writer.add(cache.addresses[sample.name], {"latents": result})
                    cache.made += 1
            done += len(batch.samples) + len(batch.broken)
            on_progress(done, len(samples))
    return cache


def _take_stock(cache: LatentCache, samples: Sequence[Sample], workers: int) -> list[Sample]:
    """Compute the address of every sample and return the samples without an entry. Unreadable files are left out."""

    def look(sample: Sample) -> tuple[str, bool] | OSError:
        try:
            address = cache.address(sample)
        except OSError as error:
            return error
        return address, cache.store.holds(address)

    missing: list[Sample] = []
    with ThreadPoolExecutor(workers, thread_name_prefix="hash") as pool:
        for sample, found in zip(samples, pool.map(look, samples), strict=True):
            if isinstance(found, OSError):
                cache.leave_out(sample, f"cannot be read: {found.strerror or found}")
                continue
            cache.addresses[sample.name], held = found
            cache.reused += held
            if not held:
                missing.append(sample)
    return missing
