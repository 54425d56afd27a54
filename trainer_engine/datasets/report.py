"""The report about the datasets of a run: samples, buckets and problems of each set, and a summary as JSON."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from trainer_engine.config.datasets import ImageSet
from trainer_engine.config.datasets.fields import ALWAYS
from trainer_engine.contract.errors import Problem
from trainer_engine.datasets.buckets import Bucket, Effective, SetNumbers, shares
from trainer_engine.datasets.samples import Sample
from trainer_engine.datasets.sources.base import LeftOut, printable
from trainer_engine.datasets.timeline import TimedSet, Timeline

MOST_LISTED = 200
"""Files listed in a summary."""


@dataclass
class SetReport:
    """The samples, buckets and problems of one dataset."""

    entry: ImageSet
    effective: Effective
    """With the set's own ``train_batch_size``, if it has one."""
    files: int = 0
    """Number of files of the source that may hold samples."""
    samples: list[Sample] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    buckets: dict[str, list[int]] = field(default_factory=dict)
    """Bucket -> indices of its samples."""
    counts: list[Bucket] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    at_least: int = 0
    """Least number of samples that a bucket gives in an epoch; those of smaller buckets are repeated."""

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
        return TimedSet(self.entry.id, batches, self.entry.probability, self.entry.gates)

    @property
    def frequency(self) -> tuple[object, ...]:
        """The settings that decide how often a sample is seen and when: part of its fingerprint in checkpoints."""
        usual = (self.entry.repeats + 1, self.at_least, self.entry.probability)
        scheduled = (self.entry.train_batch_size, *self.entry.gates)
        return usual if scheduled == (None, *ALWAYS) else (*usual, *scheduled)

    def summary(self) -> dict[str, Any]:
        batch_size = self.effective.batch
        return {
            "id": self.entry.id,
            "folder": printable(self.entry.place),
            "files": self.files,
            "usable": len(self.samples),
            "samples_per_epoch": self.samples_per_epoch,
            "batches_per_epoch": self.batches_per_epoch,
            "left_out_count": len(self.left_out),
            "left_out": [{"path": printable(file.name), "reason": printable(file.reason)} for file in self.left_out[:MOST_LISTED]],
            "buckets": [
                {
                    "aspect": bucket.aspect,
                    "width": bucket.size[0],
                    "height": bucket.size[1],
                    "images": bucket.images,
                    "samples": bucket.samples,
                    "batches": bucket.batches(batch_size),
                }
                for bucket in self.counts
            ],
        }


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
        """Optimizer steps in an epoch in which all sets are trained on."""
        return -(-self.batches_per_epoch // self.effective.accumulation)

    def summary(self) -> dict[str, Any]:
        """Returns the report as JSON."""
        numbers = [SetNumbers(report.batches_per_epoch, report.entry.probability) for report in self.sets]
        parts = shares(numbers, by_size=self.by_size)
        return {
            "samples_per_epoch": self.samples_per_epoch,
            "batches_per_epoch": self.batches_per_epoch,
            "steps_per_epoch": self.steps_per_epoch,
            "samples_per_step": self.effective.samples,
            "datasets": [{**report.summary(), "share": share.as_dict()} for report, share in zip(self.sets, parts, strict=True)],
            "eval_datasets": [report.summary() for report in self.eval_sets],
        }
