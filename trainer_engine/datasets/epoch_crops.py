"""The crops of a set whose images are cropped anew in each epoch: a pure function of the seed, the file's name and the epoch.

The place of a crop is random in each epoch. Its aspect follows a sequence of low discrepancy: the random number of a file moves on by the
golden ratio in each epoch, modulo 1. So an image gets its possible aspects in turn, each about as often as its weight says.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, lru_cache
from typing import NamedTuple

from trainer_engine.config.datasets import ImageSet
from trainer_engine.datasets import geometry
from trainer_engine.datasets.buckets import clip_bucket, fill_buckets, paired_bucket
from trainer_engine.datasets.crops import random_numbers
from trainer_engine.datasets.fitting import Fitted, Fitter
from trainer_engine.datasets.samples import Reference, Sample
from trainer_engine.datasets.timeline import CHANGING_EPOCHS

ONE = 1 << 53
"""Random numbers are integers below this, so that their sums are exact."""
GOLDEN = 5_566_755_282_872_655
"""(sqrt(5) - 1) / 2 in units of 2**-53."""
KEPT = 64
"""Epochs whose numbers of images are remembered."""


class Group(NamedTuple):
    """Images with the same possible buckets."""

    sample: Sample
    """One of them."""
    numbers: list[int]
    """The random number of each, in ascending order."""


class EpochCrops:
    """The crops of the samples of one set. Safe to use from several threads."""

    def __init__(self, entry: ImageSet, fitter: Fitter, samples: Sequence[Sample]) -> None:
        """``samples``: with their crops of the first epoch."""
        self.entry = entry
        self.fitter = fitter
        self.samples = tuple(samples)
        self.bucket_sizes: Callable[[int], tuple[int, ...]] = lru_cache(KEPT)(self._bucket_sizes)
        """epoch, from 0 -> images of each of its buckets, in the order of ``buckets``."""

    def of(self, sample: Sample, epoch: int) -> Sample:
        """Returns a sample with its crop of an epoch, from 0. Its mask and strict references share the crop; loose ones keep theirs."""
        if not epoch:
            return sample
        fitted = self._fitted(sample, epoch) if self.entry.changes_aspects else None

        def cropped(one: Sample) -> Sample:
            if fitted is None:
                return one._replace(epoch=epoch)
            return one._replace(epoch=epoch, target=fitted.target, crop=fitted.crop, resized=fitted.resized)

        def partner(one: Reference) -> Reference:
            return one._replace(sample=cropped(one.sample)) if shares_crop(one) else one

        moved = cropped(sample)._replace(references=tuple(map(partner, sample.references)), mask=sample.mask and partner(sample.mask))
        return moved._replace(bucket=self._bucket(sample, fitted)) if fitted else moved

    def images(self, epoch: int) -> Iterator[Sample]:
        """Yields every sample with its crop of an epoch, from 0."""
        return (self.of(sample, epoch) for sample in self.samples)

    def references(self, place: int, epoch: int) -> Iterator[Sample]:
        """Yields the reference at ``place`` of every sample, with its crop of an epoch."""
        return (sample.references[place].sample for sample in self.images(epoch))

    def buckets(self, epoch: int) -> list[list[int]]:
        """Returns the indices of the samples of each bucket of an epoch, from 0. Buckets are sorted as those of ``fill_buckets``."""
        if not epoch or not self.entry.changes_aspects:
            return list(fill_buckets(self.samples).values())
        found: dict[tuple[float, str], list[int]] = defaultdict(list)
        for index, sample in enumerate(self.samples):
            found[self._place(sample, self._fitted(sample, epoch))].append(index)
        return [found[place] for place in sorted(found)]

    def _bucket_sizes(self, epoch: int) -> tuple[int, ...]:
        if not epoch or not self.entry.changes_aspects:
            return tuple(map(len, self.buckets(epoch)))
        found: Counter[tuple[float, str]] = Counter()
        for group in self._groups:
            size = (group.sample.width, group.sample.height)
            for aspect, images in self._aspects(group, epoch):
                found[self._place(group.sample, self.fitter.fit_aspect(size, aspect))] += images
        return tuple(images for _, images in sorted(found.items()) if images)

    @cached_property
    def _groups(self) -> list[Group]:
        groups: dict[object, Group] = {}
        for sample in self.samples:
            loose = tuple(one.sample.target for one in sample.references if not shares_crop(one))
            same = (self.fitter.choices((sample.width, sample.height)), sample.frames, sample.is_clip, loose)
            groups.setdefault(same, Group(sample, [])).numbers.append(_number(sample))
        for group in groups.values():
            group.numbers.sort()
        return list(groups.values())

    def _aspects(self, group: Group, epoch: int) -> Iterator[tuple[float, int]]:
        """Yields the aspects of a group in an epoch, each with its number of images, without looking at every image.

        Both parts of the group, before and after the numbers that pass 1, are in ascending order of their choices.
        """
        choices = self.fitter.choices((group.sample.width, group.sample.height))
        numbers, weights = group.numbers, [one.weight for one in choices]
        if not choices:
            yield 1.0, len(numbers)
            return

        def place_of(number: int) -> int:
            return int(geometry.chosen_aspect(_turned(number, epoch), range(len(choices)), weights))

        passing = bisect_left(numbers, ONE - _shift(epoch))
        for start, end in ((0, passing), (passing, len(numbers))):
            for place, choice in enumerate(choices):
                stop = bisect_left(numbers, place + 1, start, end, key=place_of)
                yield choice.aspect, stop - start
                start = stop

    def _fitted(self, sample: Sample, epoch: int) -> Fitted:
        size = (sample.width, sample.height)
        return self.fitter.fit_aspect(size, self.fitter.chosen_aspect(size, _turned(_number(sample), epoch)))

    @staticmethod
    def _bucket(sample: Sample, fitted: Fitted) -> str:
        own = clip_bucket(fitted.bucket, sample.frames) if sample.is_clip else fitted.bucket
        return paired_bucket(own, fitted.target, [one.sample.target for one in sample.references if not shares_crop(one)])

    def _place(self, sample: Sample, fitted: Fitted) -> tuple[float, str]:
        """Returns what buckets are sorted by: the aspect of their target, and their name."""
        return fitted.target[0] / fitted.target[1], self._bucket(sample, fitted)


def shares_crop(one: Reference) -> bool:
    """Whether a reference or a mask has the crop of its image."""
    return bool(one.sample.random_name)


def _number(sample: Sample) -> int:
    """Returns the random number of a sample in the first epoch."""
    return int(random_numbers(sample.name, "aspect")[0] * ONE)


def _shift(epoch: int) -> int:
    return GOLDEN * min(epoch, CHANGING_EPOCHS - 1) % ONE


def _turned(number: int, epoch: int) -> float:
    """Returns the random number in [0, 1) of an epoch."""
    return (number + _shift(epoch)) % ONE / ONE
