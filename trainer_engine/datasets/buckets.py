"""Groups samples of one size into buckets, and counts their batches, their share of an epoch and what an optimizer step lacks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from trainer_engine.config.datasets import ImageSet
from trainer_engine.contract.errors import Problem
from trainer_engine.datasets import geometry
from trainer_engine.datasets.geometry import Size
from trainer_engine.datasets.samples import Sample

MOST_BUCKETS_TOLD = 12


@dataclass(frozen=True)
class Effective:
    """The samples that one optimizer step takes from a bucket."""

    train_batch_size: int
    accumulation: int
    processes: int

    @property
    def samples(self) -> int:
        return self.train_batch_size * self.accumulation * self.processes

    def __str__(self) -> str:
        parts = [f"train_batch_size {self.train_batch_size}", f"gradient_accumulation_steps {self.accumulation}"]
        parts += [f"num_processes {self.processes}"] if self.processes > 1 else []
        return f"{' x '.join(parts)} = {self.samples}"


@dataclass(frozen=True)
class Bucket:
    """What one bucket holds."""

    key: str
    aspect: float
    size: Size
    images: int
    samples: int
    """Seen in an epoch: images x (repeats + 1), or as many as a step needs where short buckets may be repeated."""

    def batches(self, batch_size: int) -> int:
        """Batches in an epoch; the last one is filled up."""
        return math.ceil(self.samples / batch_size)

    @property
    def title(self) -> str:
        return f"{self.aspect:g} ({self.size[0]}x{self.size[1]})"


def bucket_key(target: Size, rounding: int) -> str:
    """The name of the bucket of a size: its aspect, and the size itself, since two sizes may share a rounded aspect."""
    return f"{geometry.aspect_of(target, rounding):g} ({target[0]}x{target[1]})"


def fill_buckets(samples: Sequence[Sample]) -> dict[str, list[int]]:
    """Bucket -> indices of its samples; buckets by aspect, samples in their order."""
    found: dict[str, list[int]] = {}
    for index, sample in enumerate(samples):
        found.setdefault(sample.bucket, []).append(index)
    return dict(sorted(found.items(), key=lambda item: (samples[item[1][0]].target[0] / samples[item[1][0]].target[1], item[0])))


def count_buckets(
    samples: Sequence[Sample], buckets: Mapping[str, Sequence[int]], *, repeats: int, rounding: int, at_least: int
) -> list[Bucket]:
    """The numbers of each bucket; short ones count ``at_least`` samples, 0 where they are not repeated."""
    counted = []
    for key, members in buckets.items():
        size = samples[members[0]].target
        seen = max(len(members) * (repeats + 1), at_least)
        counted.append(Bucket(key, geometry.aspect_of(size, rounding), size, len(members), seen))
    return counted


def short_buckets(entry: ImageSet, buckets: Sequence[Bucket], effective: Effective) -> Problem | None:
    """The error of a dataset that has buckets too small for one optimizer step, with the smallest changes that mend it."""
    short = [bucket for bucket in buckets if bucket.samples < effective.samples]
    if not short:
        return None
    passes = f" x {entry.repeats + 1} passes" if entry.repeats else ""
    told = "; ".join(
        f"{bucket.title}: {bucket.images} images{passes}, {effective.samples - bucket.samples} short"
        for bucket in short[:MOST_BUCKETS_TOLD]
    )
    more = f"; and {len(short) - MOST_BUCKETS_TOLD} more" if len(short) > MOST_BUCKETS_TOLD else ""
    counted = f"{len(short)} of {len(buckets)} buckets hold fewer samples than one optimizer step takes"
    message = f"dataset {entry.id}: {counted}. {told}{more}."
    return Problem.error(
        entry.option("repeats"),
        "bucket_too_small",
        message,
        got=entry.repeats,
        expected=f"at least {effective.samples} samples in every bucket ({effective})",
        hint=_mend(entry, short, effective),
    )


def _mend(entry: ImageSet, short: Sequence[Bucket], effective: Effective) -> str:
    smallest = min(short, key=lambda bucket: bucket.samples)
    changes = [f"set repeats to {math.ceil(effective.samples / smallest.images) - 1}"]
    a_batch = effective.train_batch_size * effective.processes
    if effective.accumulation > 1 and smallest.samples >= a_batch:
        changes.append(f"gradient_accumulation_steps to {smallest.samples // a_batch}")
    elif smallest.samples >= effective.processes and effective.train_batch_size > 1:
        also = " and gradient_accumulation_steps to 1" if effective.accumulation > 1 else ""
        changes.append(f"train_batch_size to {smallest.samples // effective.processes}{also}")
    if not entry.repeats:
        changes.append("allow_dataset_oversubscription to true")
    return ", or ".join(changes)


class SetNumbers(NamedTuple):
    """What decides how often a dataset is drawn."""

    batches: int
    """In an epoch."""
    weight: float
    """``probability``."""


class Share(NamedTuple):
    """Parts of 1."""

    at_start: float
    """Of the first batches of an epoch, and so of a run that is much shorter than one."""
    of_epoch: float
    """Of a whole epoch: every sample is seen ``repeats + 1`` times, whatever the weights are."""

    def as_dict(self) -> dict[str, float | str]:
        """As ``validate`` answers."""
        return {"at_start": round(self.at_start, 6), "of_epoch": round(self.of_epoch, 6), "text": self.text}

    @property
    def text(self) -> str:
        if math.isclose(self.at_start, self.of_epoch):
            return f"{100 * self.of_epoch:.3g} % of the batches"
        return f"{100 * self.at_start:.3g} % of the batches at the start of an epoch, {100 * self.of_epoch:.3g} % over the whole epoch"


def shares(sets: Sequence[SetNumbers], *, by_size: bool) -> list[Share]:
    """The share of each dataset; 0 for one without batches."""
    weights = [one.weight * (one.batches if by_size else 1) if one.batches else 0.0 for one in sets]
    total, batches = sum(weights), sum(one.batches for one in sets)
    parts = [weight / total if total else 0.0 for weight in weights]
    return [Share(part, one.batches / batches if batches else 0.0) for part, one in zip(parts, sets, strict=True)]
