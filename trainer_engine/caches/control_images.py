"""The control images of a ControlNet that sees pixels.

They are decoded when a batch needs them; the cache only records which ones can be.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from trainer_engine.caches.decoding import pixels_made_from, sample_pixels
from trainer_engine.caches.latents import THREADS_PER_CORE
from trainer_engine.caches.store import CacheStore, address_of
from trainer_engine.datasets.media.base import BrokenImage
from trainer_engine.datasets.samples import Sample
from trainer_engine.runtime.stages import Advance


class ControlImages:
    """The control images of the samples of one image set. ``read`` is thread-safe."""

    def __init__(self, store: CacheStore, seed: int) -> None:
        """``seed`` places random crops."""
        self.store = store
        self.seed = seed
        self.contents: dict[str, str] = {}
        """Name of a control image -> sha256 of its file, for every readable file."""
        self.addresses: dict[str, str] = {}
        """Name of a control image -> address of its pixels, for every usable one."""
        self.left_out: list[tuple[Sample, str]] = []
        """Control images that cannot be used, with the reason."""
        self.stopped = False
        """Whether ``should_stop`` ended the examination early."""

    def read(self, sample: Sample) -> Tensor:
        """(3, H, W) float32 in [0, 1]: the part that lies on the crop of its image. Raises BrokenImage."""
        return (sample_pixels(sample, self.seed) + 1) / 2

    def add(self, sample: Sample) -> None:
        """Decode a control image once, unless an earlier run did. One that cannot be decoded is left out. Raises DiskFull."""
        try:
            content = self.store.hashes.of_entry(sample.source, sample.name)
            self.contents[sample.name] = content
            address = address_of("control image", **pixels_made_from(sample, content, self.seed))
            if self.store.get(address) is None:
                self.read(sample)
                self.store.put(address, {"size": torch.tensor(sample.target)})
        except OSError as error:
            self.left_out.append((sample, f"cannot be read: {error.strerror or error}"))
        except BrokenImage as error:
            self.left_out.append((sample, error.reason))
        else:
            self.addresses[sample.name] = address


def examine_controls(
    samples: Sequence[Sample],
    store: CacheStore,
    *,
    seed: int,
    workers: int,
    on_progress: Advance = lambda done, total: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> ControlImages:
    """Find out which control images of an image set can be decoded, in ``workers`` threads. Raises DiskFull."""
    images = ControlImages(store, seed)

    def add(sample: Sample) -> None:
        if not should_stop():
            images.add(sample)

    workers = min(workers, THREADS_PER_CORE * (os.cpu_count() or 1))
    with ThreadPoolExecutor(workers, thread_name_prefix="control") as pool:
        for done, _ in enumerate(pool.map(add, samples), start=1):
            on_progress(done, len(samples))
    images.stopped = should_stop()
    images.left_out.sort(key=lambda one: one[0].name)
    return images
