"""Groups samples of one size into buckets, and counts their batches and what an optimizer step lacks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from trainer_engine.config.datasets import ImageSet
from trainer_engine.config.token_splitting import SIZE
from trainer_engine.contract.errors import Problem
from trainer_engine.datasets import geometry
from trainer_engine.datasets.geometry import Size
from trainer_engine.datasets.samples import Sample

MAX_LISTED = 12
"""Buckets named in a message."""


@dataclass(frozen=True)
class Effective:
    """The number of samples that one optimizer step takes, and its factors."""

    train_batch_size: int
    accumulation: int
    processes: int
    group: int = 1
    """Processes that work on one sample together."""

    @property
    def samples(self) -> int:
        return self.batch * self.accumulation

    def of_set(self, entry: ImageSet) -> Effective:
        """Returns the same for a set, which may have a batch size of its own."""
        return replace(self, train_batch_size=entry.train_batch_size or self.train_batch_size)

    @property
    def batch(self) -> int:
        """Samples of one micro-batch over all processes."""
        return self.train_batch_size * max(1, self.processes // self.group)

    @property
    def batch_text(self) -> str:
        if self.processes == 1:
            return f"train_batch_size {self.train_batch_size}"
        shared = f" / {SIZE} {self.group}" if self.group > 1 else ""
        return f"train_batch_size {self.train_batch_size} x num_processes {self.processes}{shared} = {self.batch}"


def samples_seen(images: int, repeats: int, at_least: int = 0) -> int:
    """Returns the samples that a bucket of so many images gives in an epoch: each is seen ``repeats`` + 1 times, or more often if that is
    fewer than ``at_least``."""
    return max(images * (repeats + 1), at_least)


@dataclass(frozen=True)
class Bucket:
    """The size and the numbers of one bucket."""

    key: str
    aspect: float
    size: Size
    images: int
    samples: int
    """Samples in an epoch, as ``samples_seen`` counts them."""
    frames: int = 1
    """Frames of each clip; 1 for images."""

    def batches(self, batch_size: int) -> int:
        """Returns the number of batches in an epoch; the last one is filled up."""
        return math.ceil(self.samples / batch_size)

    def times_seen(self, batch_size: int) -> float:
        """Returns how often an image is seen in an epoch, on average, once the last batch is filled up."""
        return self.batches(batch_size) * batch_size / self.images

    def is_short(self, repeats: int, batch_size: int) -> bool:
        """Whether its images are repeated beyond ``repeats``: it does not fill a batch, or it is oversubscribed."""
        return samples_seen(self.images, repeats) < max(batch_size, self.samples)

    @property
    def title(self) -> str:
        of_image = f"{self.aspect:g} ({self.size[0]}x{self.size[1]})"
        return of_image if self.frames == 1 else clip_bucket(of_image, self.frames)


def bucket_key(target: Size, rounding: int) -> str:
    """Returns the name of the bucket of a size: its aspect ratio and the size, since two sizes may have the same rounded aspect ratio."""
    return f"{geometry.aspect_of(target, rounding):g} ({target[0]}x{target[1]})"


def clip_bucket(key: str, frames: int) -> str:
    """Returns the name of the bucket of clips with this many frames, from that of images of their size."""
    return f"{key} of {frames} frames"


def paired_bucket(key: str, target: Size, references: Iterable[Size]) -> str:
    """Returns the name of the bucket of images whose references have these sizes.

    Tensors of a batch are stacked, so images of one size with references of different sizes are in different buckets.
    """
    other = [f"{width}x{height}" for width, height in references if (width, height) != target]
    return f"{key} with {', '.join(other)}" if other else key


def fill_buckets(samples: Sequence[Sample]) -> dict[str, list[int]]:
    """Returns the indices of each bucket's samples. Buckets are sorted by aspect ratio; samples keep their order."""
    found: dict[str, list[int]] = {}
    for index, sample in enumerate(samples):
        found.setdefault(sample.bucket, []).append(index)
    return dict(sorted(found.items(), key=lambda item: (samples[item[1][0]].target[0] / samples[item[1][0]].target[1], item[0])))


def count_buckets(
    samples: Sequence[Sample], buckets: Mapping[str, Sequence[int]], *, repeats: int, rounding: int, at_least: int
) -> list[Bucket]:
    """Returns the numbers of each bucket. Each has at least ``at_least`` samples, which is 0 if short buckets are not repeated."""
    counted = []
    for key, members in buckets.items():
        size, frames = samples[members[0]].target, samples[members[0]].frames
        seen = samples_seen(len(members), repeats, at_least)
        counted.append(Bucket(key, geometry.aspect_of(size, rounding), size, len(members), seen, frames))
    return counted


def short_buckets(entry: ImageSet, buckets: Sequence[Bucket], effective: Effective) -> Problem | None:
    """Returns a note about buckets that do not fill a batch: their images are repeated, and how often."""
    short = [bucket for bucket in buckets if bucket.is_short(entry.repeats, effective.batch)]
    if not short:
        return None
    short.sort(key=lambda bucket: bucket.times_seen(effective.batch), reverse=True)
    listed = "; ".join(
        f"{bucket.title}: {bucket.images} image{'s' if bucket.images > 1 else ''}, seen {bucket.times_seen(effective.batch):.3g} times"
        for bucket in short[:MAX_LISTED]
    )
    more = f"; and {len(short) - MAX_LISTED} more" if len(short) > MAX_LISTED else ""
    counted = f"{len(short)} of {len(buckets)} buckets hold too few samples for a batch, so their images are repeated in each epoch"
    return Problem.note(
        entry.option("repeats"),
        "bucket_too_small",
        f"dataset {entry.id}: {counted}. {listed}{more}.",
        got=entry.repeats,
        expected=f"at least {effective.batch} samples in every bucket ({effective.batch_text})",
        hint="a smaller train_batch_size repeats fewer images; crop_aspect square or closest makes fewer buckets",
    )
