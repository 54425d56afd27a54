"""Caches masks at the size of latents, so that a step reads a few kilobytes instead of decoding an image. No autoencoder is involved."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from trainer_engine.caches.decoding import pixels_made_from
from trainer_engine.caches.latents import THREADS_PER_CORE
from trainer_engine.caches.store import CacheStore, InMemoryCache, address_of
from trainer_engine.datasets.crops import crop_window
from trainer_engine.datasets.masks import load_mask
from trainer_engine.datasets.media.base import BrokenImage
from trainer_engine.datasets.samples import Sample
from trainer_engine.runtime.stages import Advance

MASK_RULE = 1
"""Version of the values that a mask file gives."""


class MaskCache:
    """The masks of the samples of one image set. ``read`` is fast and thread-safe."""

    def __init__(self, store: CacheStore, seed: int, *, segments: bool) -> None:
        """``seed`` places random crops. ``segments``: everything that is not black counts in full."""
        self.store = store
        self.seed = seed
        self.segments = segments
        self.contents: dict[str, str] = {}
        """Name of a mask -> sha256 of its file, for every readable file."""
        self.addresses: dict[str, str] = {}
        """Name of a mask -> address of its entry, for every usable mask."""
        self.left_out: list[tuple[Sample, str]] = []
        """Masks that cannot be used, with the reason."""
        self.empty: list[Sample] = []
        """Masks without any place that counts."""
        self.stopped = False
        """Whether ``should_stop`` ended the caching early."""
        self._in_memory = InMemoryCache()

    def read(self, sample: Sample, size: tuple[int, int]) -> Tensor:
        """(1, h, w) float32 in [0, 1] on the CPU, for latents of ``size`` (h, w). A missing or damaged entry is computed again;
        crops of later epochs are not stored.

        Raises KeyError for a mask that was left out, BrokenImage if the file is gone too.
        """
        if sample.epoch:  # the crop of one epoch is used a few times at most
            return self._values(sample, size)
        address = self._address(sample, self.contents[sample.name], size)
        known = self._in_memory.get(address) or self.store.get(address)
        return self._in_memory.keep(address, known or self._compute(sample, address, size))["mask"]

    def add(self, sample: Sample, size: tuple[int, int]) -> None:
        """Make the entry of a mask, if there is none. A mask that cannot be read is left out. Raises DiskFull."""
        try:
            content = self.store.hashes.of_entry(sample.source, sample.name)
            self.contents[sample.name] = content
            mask = self.read(sample, size)
        except OSError as error:
            self.left_out.append((sample, f"cannot be read: {error.strerror or error}"))
        except BrokenImage as error:
            self.left_out.append((sample, error.reason))
        else:
            self.addresses[sample.name] = self._address(sample, content, size)
            if not mask.any():
                self.empty.append(sample)

    def _address(self, sample: Sample, content: str, size: tuple[int, int]) -> str:
        made_from = pixels_made_from(sample, content, self.seed)
        return address_of("mask", **{**made_from, "pixels": f"mask {MASK_RULE}"}, size=list(size), segments=self.segments)

    def _compute(self, sample: Sample, address: str, size: tuple[int, int]) -> dict[str, Tensor]:
        entry = {"mask": self._values(sample, size)}
        self.store.put(address, entry)
        return entry

    def _values(self, sample: Sample, size: tuple[int, int]) -> Tensor:
        """The mean of the pixels behind each place of the latents; of segments 1 if any of them counts."""
        grey = load_mask(sample, crop_window(sample, self.seed), segments=self.segments)
        pixels = torch.from_numpy(np.array(grey, dtype=np.uint8)).float().div_(255)
        means = functional.adaptive_avg_pool2d(pixels[None, None], size)[0]
        return (means > 0).float() if self.segments else means


def cache_masks(
    samples: Sequence[Sample],
    store: CacheStore,
    *,
    seed: int,
    segments: bool,
    scale_factor_px: int,
    workers: int,
    on_progress: Advance = lambda done, total: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> MaskCache:
    """Compute the missing masks of an image set in ``workers`` threads.

    ``scale_factor_px``: pixels of an edge that one place of the latents stands for. Raises DiskFull.
    """
    cache = MaskCache(store, seed, segments=segments)

    def add(sample: Sample) -> None:
        width, height = sample.target
        if not should_stop():
            cache.add(sample, (height // scale_factor_px, width // scale_factor_px))

    workers = min(workers, THREADS_PER_CORE * (os.cpu_count() or 1))
    with ThreadPoolExecutor(workers, thread_name_prefix="mask") as pool:
        for done, _ in enumerate(pool.map(add, samples), start=1):
            on_progress(done, len(samples))
    cache.stopped = should_stop()
    cache.empty.sort(key=lambda sample: sample.name)
    cache.left_out.sort(key=lambda one: one[0].name)
    return cache
