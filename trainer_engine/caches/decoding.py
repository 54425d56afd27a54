"""Decodes images in threads, ahead of whoever encodes them."""

from __future__ import annotations

import struct
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

BROKEN = (OSError, ValueError, SyntaxError, struct.error, Image.DecompressionBombError)
"""What Pillow raises for files that are no whole image."""
BATCHES_AHEAD = 3


class ImageSample(Protocol):
    """What is needed to know of a sample of an image set."""

    @property
    def path(self) -> str: ...
    @property
    def resized(self) -> tuple[int, int]: ...
    @property
    def target(self) -> tuple[int, int]: ...


@dataclass(frozen=True)
class Pictures:
    """How the pixels of a sample are had."""

    window: Callable[[ImageSample], tuple[int, int]]
    """(left, top) of the crop in the resized image."""
    load: Callable[[ImageSample, tuple[int, int]], Image.Image]
    """The cropped RGB image for (left, top)."""


@dataclass
class DecodedBatch:
    """Samples of one size with their pixels (B, 3, H, W) in [-1, 1], and those that could not be decoded, with the reason."""

    samples: list[ImageSample] = field(default_factory=list)
    pixels: Tensor = field(default_factory=lambda: torch.empty(0))
    broken: list[tuple[ImageSample, str]] = field(default_factory=list)


def pixels_of(image: Image.Image) -> Tensor:
    """RGB image -> (3, H, W) float32 in [-1, 1]."""
    values = torch.from_numpy(np.array(image.convert("RGB"), dtype=np.uint8))
    return values.permute(2, 0, 1).float().div_(127.5).sub_(1.0)


def batches_by_size(samples: Sequence[ImageSample], batch_size: int) -> list[list[ImageSample]]:
    """Batches whose images share a size, in order of first appearance."""
    groups: dict[tuple[int, int], list[ImageSample]] = defaultdict(list)
    for sample in samples:
        groups[sample.target].append(sample)
    return [group[start : start + batch_size] for group in groups.values() for start in range(0, len(group), batch_size)]


def decoded_batches(samples: Sequence[ImageSample], pictures: Pictures, *, batch_size: int, workers: int) -> Iterator[DecodedBatch]:
    """Every sample once. A few batches are decoded ahead, no more, so that memory stays bounded."""

    def decode(sample: ImageSample) -> Tensor:
        return pixels_of(pictures.load(sample, pictures.window(sample)))

    waiting: deque[list[tuple[ImageSample, Future[Tensor]]]] = deque()
    batches = iter(batches_by_size(samples, batch_size))
    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    ahead = BATCHES_AHEAD + -(-workers // batch_size)
    try:
        for batch in islice(batches, ahead):
            waiting.append([(sample, pool.submit(decode, sample)) for sample in batch])
        while waiting:
            yield _collected(waiting.popleft())
            for batch in islice(batches, 1):
                waiting.append([(sample, pool.submit(decode, sample)) for sample in batch])
    finally:
        pool.shutdown(cancel_futures=True)


def _collected(decoding: list[tuple[ImageSample, Future[Tensor]]]) -> DecodedBatch:
    batch, pixels = DecodedBatch(), []
    for sample, future in decoding:
        try:
            pixels.append(future.result())
            batch.samples.append(sample)
        except BROKEN as error:
            batch.broken.append((sample, f"cannot be decoded: {error}"))
    if pixels:
        batch.pixels = torch.stack(pixels)
    return batch
