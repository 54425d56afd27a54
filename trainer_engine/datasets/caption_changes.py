"""Changes captions after they are found: filters them, and adds variants with shuffled tags."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from trainer_engine.config.datasets import Dataloader, ImageSet, TextSet
from trainer_engine.config.datasets.lists import FILTERS
from trainer_engine.config.datasets.object_fields import CaptionShuffle
from trainer_engine.contract.errors import Problem
from trainer_engine.datasets.caption_filter import CaptionFilter, FilterFails
from trainer_engine.datasets.samples import Sample
from trainer_engine.datasets.sources.base import LeftOut, reason_of

SEPARATORS: Mapping[str, tuple[str, str]] = {"comma": (",", ", "), "space": (" ", " "), "period": (".", ". ")}
"""What tags are split at, and what they are joined with."""
FEWEST_TAGS = 2
"""A caption with fewer tags that may move has no variants."""
EMPTIED = "caption_filter_list leaves nothing of its caption"


@dataclass(frozen=True)
class CaptionChanges:
    """How the captions of one image set are changed."""

    text_set: TextSet
    filter: CaptionFilter | None
    shuffle: CaptionShuffle | None
    seed: int

    def apply(self, outcomes: Iterable[Sample | LeftOut]) -> Iterator[Sample | LeftOut]:
        """Yields the samples with their changed captions; one without a caption is left out. Raises FilterFails, OSError."""
        if self.filter is None:
            shuffles = self.shuffle is not None and self.shuffle.enable
            yield from (self._shuffled(one) if isinstance(one, Sample) else one for one in outcomes) if shuffles else outcomes
            return
        found = list(outcomes)
        texts = list(dict.fromkeys(caption for one in found if isinstance(one, Sample) for caption in one.captions))
        filtered = dict(zip(texts, self.filter.apply(texts), strict=True))
        for one in found:
            if isinstance(one, LeftOut):
                yield one
                continue
            captions = tuple(dict.fromkeys(text for caption in one.captions if (text := filtered[caption])))
            yield self._shuffled(one._replace(captions=captions)) if captions else LeftOut(one.name, EMPTIED, broken=True)

    def _shuffled(self, sample: Sample) -> Sample:
        if self.shuffle is None or not self.shuffle.enable:
            return sample
        shuffle, seed = self.shuffle, self.shuffle.seed if self.shuffle.seed is not None else self.seed
        return sample._replace(captions=tuple(dict.fromkeys(text for one in sample.captions for text in variants(one, shuffle, seed))))

    def failure(self, error: FilterFails | OSError) -> Problem:
        """Returns the problem of a filter that could not be applied."""
        return filter_problem(self.text_set, error)


def changes_of(dataloader: Dataloader, seed: int) -> tuple[dict[str, CaptionChanges], list[Problem]]:
    """Returns how the captions of each image set are changed, by its id, and the problems of the filters.

    A filter with a problem changes nothing. ``seed`` is that of the run.
    """
    filters: dict[str, CaptionFilter | None] = {}
    found, problems = dict[str, CaptionChanges](), list[Problem]()
    for entry in dataloader.sets_of_images:
        texts = dataloader.text_set_of(entry)
        if texts.id not in filters:
            filters[texts.id] = None
            try:
                filters[texts.id] = _usable_filter(texts)
            except (OSError, ValueError) as error:
                problems.append(filter_problem(texts, error))
        found[entry.id] = CaptionChanges(texts, filters[texts.id], entry.caption_shuffle, seed)
    return found, problems


def _usable_filter(texts: TextSet) -> CaptionFilter | None:
    """Raises OSError, ValueError, also for a pattern that is not valid."""
    if not texts.caption_filter_list:
        return None
    made = CaptionFilter.of(texts.caption_filter_list)
    made.apply([])
    return made


def filter_problem(texts: TextSet, error: OSError | ValueError) -> Problem:
    """Returns the problem of a list of filters that cannot be read or applied."""
    given = texts.caption_filter_list
    where = given if isinstance(given, str) else FILTERS
    code = error.code if isinstance(error, FilterFails) else "unreadable_file"
    reason = f"{where} cannot be read: {reason_of(error)}" if isinstance(error, OSError) else str(error)
    reason = f"{where}: {reason}" if isinstance(error, FilterFails) else reason
    hint = "do not repeat a group that itself repeats: (a+)+ is a+" if code == "pattern_too_slow" else ""
    return Problem.error(texts.option(FILTERS), code, f"dataset {texts.id}: {reason}.", hint=hint)


def emptied(entry: ImageSet, texts: TextSet, left_out: Sequence[LeftOut], usable: int) -> Problem | None:
    """Returns the error of a filter that leaves no sample of a set a caption, or None."""
    count = sum(one.reason == EMPTIED for one in left_out)
    if usable or not count:
        return None
    message = f"dataset {texts.id}: {FILTERS} leaves nothing of all captions of dataset {entry.id}, which are {count}."
    hint = "an entry is also taken for a regular expression: .* matches everything"
    return Problem.error(texts.option(FILTERS), "captions_emptied", message, got=count, expected="captions with text left", hint=hint)


def variants(caption: str, shuffle: CaptionShuffle, seed: int) -> tuple[str, ...]:
    """Returns the shuffled variants of a caption, after the caption itself if it is kept. They depend only on the caption and the seed."""
    split_at, joined_with = SEPARATORS[shuffle.split_on]
    tags = [tag.strip() for tag in caption.split(split_at) if tag.strip()]
    front, movable = tags[: shuffle.position_start], tags[shuffle.position_start :]
    if len(movable) < FEWEST_TAGS:
        return (caption,)
    end = split_at if shuffle.split_on == "period" and caption.rstrip().endswith(split_at) else ""
    own = int.from_bytes(hashlib.md5(caption.encode("utf-8", "surrogatepass"), usedforsecurity=False).digest()[-4:], "big")
    made = [caption] if shuffle.include_original else []
    for number in range(shuffle.count):
        order = list(movable)
        random.Random(seed + own + number).shuffle(order)
        made.append(joined_with.join([*front, *order]) + end)
    return tuple(dict.fromkeys(made))
