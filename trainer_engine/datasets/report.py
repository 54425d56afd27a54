"""The report about the datasets of a run: samples, buckets and problems of each set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from trainer_engine.config.datasets import ImageSet, ReferenceSet
from trainer_engine.config.datasets.fields import ALWAYS
from trainer_engine.contract.errors import Problem
from trainer_engine.datasets.buckets import Bucket, Effective, samples_seen
from trainer_engine.datasets.epoch_crops import EpochCrops
from trainer_engine.datasets.fitting import Fitter
from trainer_engine.datasets.samples import Sample
from trainer_engine.datasets.sources.base import NONE_PENDING, LeftOut, Pending
from trainer_engine.datasets.timeline import TimedSet, Timeline
from trainer_engine.datasets.validation_inputs import PlannedInput


@dataclass
class SetReport:
    """The samples, buckets and problems of one dataset."""

    entry: ImageSet
    effective: Effective
    """With the set's own ``train_batch_size``, if it has one."""
    files: int = 0
    """Number of files of the source that may hold samples."""
    pending: Pending = NONE_PENDING
    """The files that are fetched when a run starts."""
    pending_references: list[tuple[ReferenceSet, Pending]] = field(default_factory=list)
    """Its references and masks of which files are fetched then."""
    samples: list[Sample] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    buckets: dict[str, list[int]] = field(default_factory=dict)
    """Bucket -> indices of its samples."""
    counts: list[Bucket] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    not_fetched: list[ImageSet | ReferenceSet] = field(default_factory=list)
    """The set and its references, as far as a run has to fetch them before they can be examined."""
    measured_later: list[ImageSet | ReferenceSet] = field(default_factory=list)
    """The set and its references, as far as measuring them takes too long before a run starts."""
    fitter: Fitter | None = None
    """Fits images into its sizes; None for a set that could not be examined."""
    at_least: int = 0
    """Least number of samples that a bucket gives in an epoch; those of smaller buckets are repeated."""

    @property
    def waits_for_files(self) -> bool:
        """Whether files of the set, or of its references and masks, are fetched when a run starts."""
        return bool(self.pending or self.pending_references)

    @property
    def samples_per_epoch(self) -> int:
        """Samples in an epoch; 0 for a set that is not trained on."""
        return sum(bucket.samples for bucket in self.counts) if self.entry.is_trained else 0

    @property
    def batches_per_epoch(self) -> int:
        return sum(bucket.batches(self.effective.batch) for bucket in self.counts) if self.entry.is_trained else 0

    @property
    def timed(self) -> TimedSet:
        """The set as a timeline sees it."""
        batches = tuple(bucket.batches(self.effective.batch) for bucket in self.counts)
        timed = TimedSet(self.entry.id, batches, self.entry.probability, self.entry.gates, self.entry.slider_side)
        crops = self.crops(self.samples) if self.entry.changes_aspects else None
        if crops is None:
            return timed
        sizes = crops.bucket_sizes
        return timed._replace(changing=lambda epoch: tuple(-(-self.seen(images) // self.effective.batch) for images in sizes(epoch)))

    def crops(self, samples: Sequence[Sample]) -> EpochCrops | None:
        """Returns the crops of these of its samples; None if each has the same one in all epochs."""
        return EpochCrops(self.entry, self.fitter, samples) if self.entry.changes_crops and self.fitter else None

    def seen(self, images: int) -> int:
        """Returns the number of samples in an epoch of a bucket with so many images."""
        return samples_seen(images, self.entry.repeats, self.at_least)

    @property
    def frequency(self) -> tuple[object, ...]:
        """The settings that decide how often a sample is seen, when, and toward what: part of its fingerprint in checkpoints."""
        usual: tuple[object, ...] = (self.entry.repeats + 1, self.at_least, self.entry.probability)
        usual += ("regularisation",) if self.entry.is_regularisation_data else ()
        usual += ("new crops",) if self.entry.changes_crops else ()
        usual += ("slider", self.entry.slider_strength) if self.entry.slider_strength else ()
        scheduled = (self.entry.train_batch_size, *self.entry.gates)
        return usual if scheduled == (None, *ALWAYS) else (*usual, *scheduled)


@dataclass
class DatasetReport:
    """The reports of all datasets of a run."""

    sets: list[SetReport]
    """Sets to train on."""
    effective: Effective
    problems: list[Problem] = field(default_factory=list)
    """Errors, warnings and notes of all sets."""
    eval_sets: list[SetReport] = field(default_factory=list)
    """Sets to evaluate on."""
    by_size: bool = True
    """Whether ``data_backend_sampling`` takes the size of datasets into account."""
    seed: int = 0
    """The seed of the run."""
    inputs: list[PlannedInput] = field(default_factory=list)
    """Images that validations edit."""

    @property
    def is_incomplete(self) -> bool:
        """Whether files are missing here that a run fetches or measures when it starts."""
        return any(found.not_fetched or found.measured_later or found.waits_for_files for found in (*self.sets, *self.eval_sets))

    @cached_property
    def timeline(self) -> Timeline:
        """The epochs of the run."""
        timed = tuple(report.timed for report in self.sets if report.entry.is_trained and report.counts)
        return Timeline(timed, self.effective.accumulation, self.seed, self.by_size)

    @property
    def samples_per_epoch(self) -> int:
        return sum(report.samples_per_epoch for report in self.sets)

    @property
    def batches_per_epoch(self) -> int:
        """Batches over all processes."""
        return sum(report.batches_per_epoch for report in self.sets)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in an epoch in which all sets are trained on, with the buckets of the first epoch."""
        return -(-self.batches_per_epoch // self.effective.accumulation)
