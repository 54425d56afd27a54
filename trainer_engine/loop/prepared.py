"""The datasets of a run, ready to be trained on: caches of latents, masks and embeddings, and what identifies each sample."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import chain
from typing import Any

from torch import Tensor

from trainer_engine.batches.sampler import DataSource, Item
from trainer_engine.caches.control_images import ControlImages
from trainer_engine.caches.latents import LatentCache
from trainer_engine.caches.masks import MaskCache
from trainer_engine.caches.prompts import PromptCache
from trainer_engine.datasets.epoch_crops import EpochCrops, shares_crop
from trainer_engine.datasets.samples import Sample, fingerprint, reference_cache
from trainer_engine.families.inputs import Conditions, PromptEmbedding
from trainer_engine.validation.generate import Edit, ValidationPrompt


@dataclass(frozen=True)
class Prepared:
    """Datasets that can be trained on."""

    sources: tuple[DataSource, ...]
    latents: Mapping[str, LatentCache]
    """By dataset id."""
    masks: Mapping[str, MaskCache]
    """By ``reference_cache`` of a dataset and its set of masks."""
    captions: Mapping[str, PromptCache]
    """By dataset id: where the embeddings of its captions are."""
    prompts: PromptCache
    """Embeddings of the empty prompt and of the prompts of validations."""
    edits: tuple[Edit, ...] = ()
    """Pairs whose references validations use."""
    eval_prompts: tuple[ValidationPrompt, ...] = ()
    """Captions of held-out images, as prompts of validations."""
    held_out: tuple[Item, ...] = ()
    """Images that are evaluated on."""
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """By dataset id: the fields that decide how its samples are trained."""
    frequencies: Mapping[str, tuple[object, ...]] = field(default_factory=dict)
    """By dataset id: the part of its samples' fingerprints that says how often they are seen."""
    dropped: Mapping[str, Sequence[Sample]] = field(default_factory=dict)
    """By dataset id: samples that could not be encoded."""
    controls: Mapping[str, ControlImages] = field(default_factory=dict)
    """By ``reference_cache`` of a dataset and its control images, if their pixels are what a ControlNet looks at."""

    def read_latents(self, source: str, sample: Sample) -> Tensor:
        """(C, h, w)"""
        return self.latents[source].read(sample)

    def read_conditions(self, source: str, sample: Sample) -> Conditions:
        """The inputs that are cached with the latents of a sample, by name."""
        return self.latents[source].read_conditions(sample)

    def read_control(self, cache: str, sample: Sample) -> Tensor:
        """What the run looks at of a control image: pixels (3, H, W) in [0, 1], or latents (C, h, w). ``cache``: a ``reference_cache``."""
        return self.controls[cache].read(sample) if cache in self.controls else self.latents[cache].read(sample)

    def partner_addresses(self, cache: str) -> Mapping[str, str]:
        """Name of a reference, a mask or a control image -> its address. ``cache``: a ``reference_cache``."""
        return self._partner_cache(cache).addresses

    def _partner_cache(self, cache: str) -> LatentCache | MaskCache | ControlImages:
        return self.masks.get(cache) or self.controls.get(cache) or self.latents[cache]

    def read_mask(self, source: str, sample: Sample, size: tuple[int, int]) -> Tensor:
        """(1, h, w) for a sample that has a mask."""
        assert sample.mask is not None
        return self.masks[reference_cache(source, sample.mask.set)].read(sample.mask.sample, size)

    def read_prompt(self, source: str, caption: str, references: Sequence[Sample] = ()) -> PromptEmbedding:
        """The embedding of a caption; ``references`` are those that the text encoder looks at."""
        return (self.captions[source] if caption or references else self.prompts).read(caption, references)

    @property
    def crops_change(self) -> bool:
        """Whether the images of a set are cropped anew in each epoch."""
        return any(source.crops for source in self.sources)

    def release_crops(self, epoch: int) -> int:
        """Remove the latents of an epoch, from 0, that the next one does not use. Returns how many were removed."""
        return sum(
            cache.release(select(epoch), select(epoch + 1))
            for source in self.sources
            if source.crops
            for cache, select in self._changing_caches(source.id, source.crops)
        )

    def _changing_caches(self, set_id: str, crops: EpochCrops) -> Iterator[tuple[LatentCache, Callable[[int], Iterator[Sample]]]]:
        """Caches of a set whose crops change, each with its samples in an epoch. Loose references keep their crop."""
        yield self.latents[set_id], crops.images
        for place, reference in enumerate(crops.samples[0].references):
            cache = self.latents.get(reference_cache(set_id, reference.set))
            if cache and shares_crop(reference):
                yield cache, partial(crops.references, place)

    @cached_property
    def sample_names(self) -> dict[str, dict[str, str]]:
        """Dataset id -> name of each sample -> a fingerprint of all that decides how it is trained."""
        return {source.id: self._fingerprints(source, chain.from_iterable(source.buckets)) for source in self.sources}

    def left_out(self) -> dict[str, dict[str, str]]:
        """As ``sample_names``, of the samples that could not be encoded."""
        return {source.id: self._fingerprints(source, lost) for source in self.sources if (lost := self.dropped.get(source.id))}

    def _fingerprints(self, source: DataSource, samples: Iterable[Sample]) -> dict[str, str]:
        frequency = self.frequencies[source.id]

        def content_of(cache: str, sample: Sample) -> str:
            return self._partner_cache(cache).contents.get(sample.name, "")

        return {sample.name: fingerprint(source.id, sample, frequency, content_of) for sample in samples}
