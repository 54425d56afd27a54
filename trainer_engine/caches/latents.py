"""Image latents, computed once: files are hashed and decoded in threads while the autoencoder works on the batch before."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from trainer_engine.caches.decoding import ImageSample, Pictures, decoded_batches, pixels_of
from trainer_engine.caches.encoding import BatchEncoder
from trainer_engine.caches.residents import Residents
from trainer_engine.caches.store import CacheStore, address_of
from trainer_engine.caches.writer import GroupWriter
from trainer_engine.families.base import Family

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class LeftOut:
    """An image that cannot be trained on, found while caching."""

    path: str
    reason: str


class LatentCache:
    """Latents by sample. ``read`` is quick, and safe to use from several threads."""

    def __init__(self, family: Family, store: CacheStore, pictures: Pictures) -> None:
        self.family = family
        self.store = store
        self.pictures = pictures
        self.addresses: dict[str, str] = {}
        """Path -> address, for every sample that is not left out."""
        self.left_out: list[LeftOut] = []
        self.made = 0
        self.reused = 0
        self.stopped = False
        """Whether ``should_stop`` ended the work before it was done."""
        self._fingerprint = family.image_fingerprint(store.hashes)
        self._residents = Residents()
        self._encoding = threading.Lock()

    def address(self, sample: ImageSample) -> str:
        """Depends on the file's bytes, the geometry and the autoencoder. Raises OSError where the file cannot be read."""
        return address_of(
            "latents",
            image=self.store.hashes.of(Path(sample.path)),
            resized=list(sample.resized),
            target=list(sample.target),
            window=list(self.pictures.window(sample)),
            encoder=self._fingerprint,
        )

    def read(self, sample: ImageSample) -> Tensor:
        """(C, h, w) float32, scaled, on the CPU. An entry that was damaged or removed is made again, for which the autoencoder is loaded.

        KeyError for a sample that was left out.
        """
        address = self.addresses[sample.path]
        known = self._residents.get(address) or self.store.get(address)
        return self._residents.keep(address, known or self._make_again(sample, address))["latents"]

    def _make_again(self, sample: ImageSample, address: str) -> dict[str, Tensor]:
        pixels = pixels_of(self.pictures.load(sample, self.pictures.window(sample)))
        with self._encoding:
            latents = self.family.encode_images(pixels[None])[0]
            self.family.free_encoders()
        self.store.put(address, {"latents": latents})
        return {"latents": latents}

    def leave_out(self, sample: ImageSample, reason: str) -> None:
        self.addresses.pop(sample.path, None)
        self.left_out.append(LeftOut(sample.path, reason))


def cache_latents(
    family: Family,
    samples: Sequence[ImageSample],
    store: CacheStore,
    pictures: Pictures,
    *,
    batch_size: int,
    write_batch_size: int,
    workers: int,
    on_progress: Progress = lambda done, total: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> LatentCache:
    """Make what is missing; the autoencoder is loaded only if something is. Call ``family.free_encoders`` when all caches are made.

    Work that is interrupted goes on where it was: entries are committed in groups of ``write_batch_size``. ``workers`` threads decode.
    Images that cannot be read, or whose latents are unusable also in float32, are left out and named.
    ``on_progress`` hears (done, total). Raises ModelUnavailable, DiskFull, OutOfMemory.
    """
    cache = LatentCache(family, store, pictures)
    missing = _take_stock(cache, samples, workers)
    done = len(samples) - len(missing)
    on_progress(done, len(samples))
    encoder = BatchEncoder(family)
    with GroupWriter(store, write_batch_size) as writer:
        for batch in decoded_batches(missing, pictures, batch_size=batch_size, workers=workers):
            if should_stop():
                cache.stopped = True
                break
            for sample, reason in batch.broken:
                cache.leave_out(sample, reason)
            for sample, result in zip(batch.samples, encoder.encode(batch.pixels), strict=True):
                if isinstance(result, str):
                    cache.leave_out(sample, result)
                else:
                    writer.add(cache.addresses[sample.path], {"latents": result})
                    cache.made += 1
            done += len(batch.samples) + len(batch.broken)
            on_progress(done, len(samples))
    return cache


def _take_stock(cache: LatentCache, samples: Sequence[ImageSample], workers: int) -> list[ImageSample]:
    """Find every sample's address; return those without an entry. Unreadable files are left out."""

    def look(sample: ImageSample) -> tuple[str, bool] | OSError:
        try:
            address = cache.address(sample)
        except OSError as error:
            return error
        return address, cache.store.holds(address)

    missing: list[ImageSample] = []
    with ThreadPoolExecutor(workers, thread_name_prefix="hash") as pool:
        for sample, found in zip(samples, pool.map(look, samples), strict=True):
            if isinstance(found, OSError):
                cache.leave_out(sample, f"cannot be read: {found.strerror or found}")
                continue
            cache.addresses[sample.path], held = found
            cache.reused += held
            if not held:
                missing.append(sample)
    return missing
