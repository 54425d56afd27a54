"""Caches image latents and conditions of pixels. Files are hashed and decoded in threads while the batch before is encoded."""

from __future__ import annotations

import hashlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import torch
from torch import Tensor

from trainer_engine.caches.decoding import Cut, DecodedBatch, batches_by_size, cut_of, decoded_batches, sample_pixels
from trainer_engine.caches.encoding import LATENTS, BatchEncoder, Entry
from trainer_engine.caches.ranks import ALONE, Ranks, Share, exchange
from trainer_engine.caches.store import CacheStore, Encoded, InMemoryCache, address_by, entries_of
from trainer_engine.caches.writer import GroupWriter
from trainer_engine.contract.errors import DiskFull
from trainer_engine.datasets.media.base import BrokenImage
from trainer_engine.datasets.samples import Sample
from trainer_engine.datasets.scanning import MANY_OBJECTS
from trainer_engine.families.base import Family
from trainer_engine.families.inputs import Conditions
from trainer_engine.runtime.stages import Advance

log = logging.getLogger(__name__)

THREADS_PER_CORE = 2
MOST_CUTS = 1024
"""Sizes and crops whose part of an address is kept. With random crops nearly every image has its own."""
REFRESHED_SECONDS = 1.0
"""While entries are made, what other runs write is taken up this often."""


class LatentCache:
    """The latents of the samples of one image set. ``read`` is fast and thread-safe."""

    def __init__(self, family: Family, store: CacheStore, seed: int, when: Encoded = Encoded.AHEAD, *, crops_change: bool = False) -> None:
        """``crops_change``: each epoch has entries of its own, which ``release`` removes."""
        self.family = family
        self.store = store
        self.seed = seed
        self.when = when
        self.addresses: dict[str, str] = {}
        """Name of a sample -> address of its entry, for every usable sample; with its crop of the first epoch."""
        self.contents: dict[str, str] = {}
        """Name of a sample -> sha256 of its file, for every readable file."""
        self.left_out: list[tuple[Sample, str]] = []
        """Samples that cannot be used, with the reason."""
        self.made = 0
        """Entries that this process has computed."""
        self.reused = 0
        self.stopped = False
        """Whether ``should_stop`` ended the caching early."""
        self.notes_uses = True
        """Whether this process notes which entries the run uses: one of several does."""
        self.run = ""
        """Tells the run and the set apart from others that use the same folder, if crops change."""
        fingerprint = family.image_fingerprint(store.hashes)
        stored = {} if family.devices.vae == torch.float32 else {"stored": "as computed"}

        @lru_cache(MOST_CUTS)
        def address_of_image(cut: Cut) -> Callable[[str], str]:
            return address_by("image", "latents", **cut.made_from(), encoder=fingerprint, **stored)

        self._address_of_image = address_of_image
        self.encoder = BatchEncoder(family)
        self._in_memory = InMemoryCache()
        self._shard = store.writer(is_short_lived=crops_change)
        """Kept while the run trains, if entries are made on demand: choosing a shard anew for each would read its index each time."""
        self._encoding = threading.Lock()
        self._refreshed = time.monotonic()

    def address(self, sample: Sample) -> str:
        """The address of the entry: it depends on the file's bytes, the geometry and the autoencoder. Raises OSError."""
        content = self._known_hash(sample) or self.store.hashes.of_entry(sample.source, sample.name)
        self.contents[sample.name] = content
        return self._address_of_image(cut_of(sample, self.seed))(content)

    def _known_hash(self, sample: Sample) -> str | None:
        """Of the file as the scan found it, moments ago."""
        return self.store.hashes.known(sample.location, sample.size_bytes, sample.version)

    def read(self, sample: Sample) -> Tensor:
        """The scaled latents (C, h, w), float32 on the CPU. A missing or damaged entry is computed, which loads the autoencoder.

        Raises KeyError for a sample that was left out, BrokenImage if the image file is gone too.
        """
        return self._entry(sample)[LATENTS].float()

    def read_conditions(self, sample: Sample) -> Conditions:
        """The inputs that the family makes of the pixels of a sample, by name, float32 on the CPU. Raises what ``read`` raises."""
        return {name: tensor.float() for name, tensor in self._entry(sample).items() if name != LATENTS}

    def _entry(self, sample: Sample) -> Entry:
        address = self.addresses[sample.name]
        if sample.epoch:
            address = self.address(sample)
        known = self._in_memory.get(address) or self.store.get(address)
        return self._in_memory.keep(address, known or self._compute(sample, address))

    def _compute(self, sample: Sample, address: str) -> Entry:
        """Encode one sample, alone, so that its entry does not depend on the order in which samples are read."""
        pixels = sample_pixels(sample, self.seed)
        with self._encoding:
            [entry] = self.encoder.encode(pixels[None])
            if self.when is Encoded.AHEAD:
                self.family.free_encoders()
        if isinstance(entry, str):
            raise BrokenImage(sample.location, entry)
        if self.when is not Encoded.NEVER_STORED:
            self.store.put_all({address: entry}, self._shard if self.when is Encoded.ON_DEMAND else None)
        self.made += 1
        return entry

    def release(self, samples: Iterable[Sample], needed: Iterable[Sample]) -> int:
        """Remove the entries of samples, except of those that are still needed. Returns how many were removed.

        The needed ones are those of the epoch that begins: other processes leave them alone while the run lives.
        """
        self._in_memory = InMemoryCache()
        if self.when is Encoded.NEVER_STORED:
            return 0
        kept = set(map(self.address, needed))
        try:
            self.note_epoch(kept)
        except (DiskFull, OSError) as error:  # an entry that another process removes is made again, and what is removed here makes room
            log.warning("The cache %s does not know that this run reads it: %s", self.store.folder, error)
        return self.store.release({self.address(sample) for sample in samples}.difference(kept), self._shard, self.run)

    def note_epoch(self, addresses: Iterable[str]) -> None:
        """Note that this run reads these entries in an epoch. One process of a run does. Raises DiskFull."""
        if self.notes_uses:
            self.store.note_use_of_epoch(addresses, self.run, **entries_of("latents", self.family))

    def leave_out(self, sample: Sample, reason: str) -> None:
        """Exclude a sample from training."""
        self.addresses.pop(sample.name, None)
        self.left_out.append((sample, reason))

    def take_stock(self, samples: Sequence[Sample], workers: int) -> list[Sample]:
        """Compute the address of every sample and return the samples without an entry. Unreadable files are left out."""
        self.hash_files(samples, workers)
        missing: list[Sample] = []
        for sample in samples:
            try:
                self.addresses[sample.name] = address = self.address(sample)
            except OSError as error:
                self.leave_out(sample, f"cannot be read: {error.strerror or error}")
                continue
            held = self.store.holds(address)
            self.reused += held
            if not held:
                missing.append(sample)
        return missing

    def hash_files(self, samples: Sequence[Sample], workers: int) -> None:
        """Hash, in threads, the files whose hash is not known. Files that cannot be read are passed over here."""
        unknown = [sample for sample in samples if not self._known_hash(sample)]
        with ThreadPoolExecutor(workers, thread_name_prefix="hash") as pool:
            for future in [pool.submit(self.store.hashes.of_entry, sample.source, sample.name) for sample in unknown]:
                future.exception()

    def is_made_elsewhere(self, sample: Sample) -> bool:
        """Whether another run has written the entry since the stock was taken."""
        if time.monotonic() - self._refreshed > REFRESHED_SECONDS:
            self._refreshed = time.monotonic()
            self.store.refresh()
        return self.store.holds(self.addresses[sample.name])


def cache_latents(
    family: Family,
    samples: Sequence[Sample],
    store: CacheStore,
    *,
    seed: int,
    batch_size: int,
    write_batch_size: int,
    workers: int,
    when: Encoded = Encoded.AHEAD,
    crops_change: bool = False,
    ranks: Ranks = ALONE,
    on_progress: Advance = lambda done, total: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> LatentCache:
    """Compute the missing latents of an image set; the autoencoder is loaded only if some are missing.

    Every process of the run calls this, and each encodes its share. Call ``family.free_encoders`` after all caches are made. ``seed``
    places random crops. ``workers`` threads decode. Entries are written in groups of ``write_batch_size``, so that an interrupted run
    continues where it stopped. Images that cannot be read, and images whose latents are unusable also in float32, are left out. With
    another ``when`` than ``AHEAD`` nothing is encoded; files without an entry are decoded once, so that broken ones are left out here too.
    ``crops_change``: the crops are those of the first epoch, and other epochs have others.
    Raises ModelUnavailable, DiskFull, OutOfMemory.
    """
    workers = min(workers, THREADS_PER_CORE * (os.cpu_count() or 1))
    with MANY_OBJECTS.being_made():
        cache = ranks.first_then_others(lambda: LatentCache(family, store, seed, when, crops_change=crops_change))
        share = Share(ranks, [sample.name for sample in samples])
        missing = _missing(cache, samples, share, workers, ranks)
    cache.notes_uses = ranks.rank == 0
    if cache.notes_uses and when is not Encoded.NEVER_STORED and not crops_change:
        store.note_use(cache.addresses.values(), **entries_of("latents", family))
    mine = set(share.of([sample.name for sample in missing]))
    done = len(samples) - len(missing)
    on_progress(done, len(samples))
    with GroupWriter(store, write_batch_size) as writer:
        batches = batches_by_size([sample for sample in missing if sample.name in mine], batch_size)
        if batches and writer.others_write():
            batches.reverse()  # from the other end: the two of them meet in the middle
        for batch in decoded_batches(batches, seed=seed, workers=workers, is_done=cache.is_made_elsewhere):
            if should_stop():
                cache.stopped = True
                break
            _take(cache, batch, writer)
            done += ranks.count * batch.count
            on_progress(min(done, len(samples)), len(samples))
    _agree(cache, samples, ranks)
    if crops_change and when is not Encoded.NEVER_STORED:
        cache.run = _run_of(cache)
        cache.note_epoch(cache.addresses.values())
    return cache


def _run_of(cache: LatentCache) -> str:
    """The same for every process of a run, and when it resumes."""
    place = os.path.realpath(cache.family.options.run.output_dir)
    return hashlib.sha256("\n".join([place, *sorted(cache.addresses)]).encode(errors="surrogateescape")).hexdigest()


def _missing(cache: LatentCache, samples: Sequence[Sample], share: Share[str], workers: int, ranks: Ranks) -> list[Sample]:
    """The samples without an entry. Each process reads the files of its share, and takes over the hashes of the others."""
    if ranks.count > 1:
        mine = set(share.mine)
        cache.hash_files([sample for sample in samples if sample.name in mine], workers)
        ranks.wait()
        cache.store.hashes.reload()
    missing = cache.take_stock(samples, workers)
    ranks.wait()  # no process writes before all have seen the same entries
    return missing


def _take(cache: LatentCache, batch: DecodedBatch, writer: GroupWriter) -> None:
    """Encode and store a batch."""
    for sample, reason in batch.broken:
        cache.leave_out(sample, reason)
    cache.reused += len(batch.skipped)
    if cache.when is not Encoded.AHEAD or not batch.samples:
        return
    for sample, result in zip(batch.samples, cache.encoder.encode(batch.pixels), strict=True):
        if isinstance(result, str):
            cache.leave_out(sample, result)
        else:
            writer.add(cache.addresses[sample.name], result)
            cache.made += 1


def _agree(cache: LatentCache, samples: Sequence[Sample], ranks: Ranks) -> None:
    """Take over what the other processes have left out and made, so that all train on the same samples."""
    known = {sample.name for sample, _ in cache.left_out}
    found = exchange(ranks, [cache.stopped, [[sample.name, reason] for sample, reason in cache.left_out]])
    elsewhere = {name: reason for _, left_out in found for name, reason in left_out if name not in known}
    for sample in samples if elsewhere else ():
        if sample.name in elsewhere:
            cache.leave_out(sample, elsewhere[sample.name])
    cache.stopped = any(stopped for stopped, _ in found)
    if ranks.count > 1:
        cache.store.refresh()
