"""The report about the datasets of a run: samples, buckets and problems of each set, and a summary as JSON."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from trainer_engine.config.datasets import ImageSet, ReferenceSet
from trainer_engine.contract.errors import Problem
from trainer_engine.datasets.buckets import Bucket, Effective, SetNumbers, shares
from trainer_engine.datasets.samples import Sample
from trainer_engine.datasets.sources.base import LeftOut, printable

MOST_LISTED = 200
"""Files listed in a summary."""


@dataclass
class SetReport:
    """The samples, buckets and problems of one dataset."""

    entry: ImageSet
    files: int = 0
    """Number of files of the source that may hold samples."""
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
    at_least: int = 0
    """Least number of samples that a bucket gives in an epoch; those of smaller buckets are repeated."""

    @property
    def samples_per_epoch(self) -> int:
        """Samples in an epoch; 0 for a set that is not trained on."""
        return sum(bucket.samples for bucket in self.counts) if self.entry.is_trained else 0

    def batches_per_epoch(self, batch_size: int) -> int:
        return sum(bucket.batches(batch_size) for bucket in self.counts) if self.entry.is_trained else 0

    def summary(self, batch_size: int) -> dict[str, Any]:
        return {
            "id": self.entry.id,
            "folder": printable(self.entry.place),
            "files": self.files,
            "usable": len(self.samples),
            "samples_per_epoch": self.samples_per_epoch,
            "batches_per_epoch": self.batches_per_epoch(batch_size),
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

    @property
    def samples_per_epoch(self) -> int:
        return sum(report.samples_per_epoch for report in self.sets)

    def batches_per_epoch(self, train_batch_size: int) -> int:
        """Returns the number of batches of this size; with several processes, pass the size over all of them."""
        return sum(report.batches_per_epoch(train_batch_size) for report in self.sets)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in an epoch."""
        batches = self.batches_per_epoch(self.effective.train_batch_size * self.effective.processes)
        return -(-batches // self.effective.accumulation)

    def summary(self) -> dict[str, Any]:
        """Returns the report as JSON."""
        batch_size = self.effective.train_batch_size * self.effective.processes
        numbers = [SetNumbers(report.batches_per_epoch(batch_size), report.entry.probability) for report in self.sets]
        parts = shares(numbers, by_size=self.by_size)
        return {
            "samples_per_epoch": self.samples_per_epoch,
            "batches_per_epoch": self.batches_per_epoch(batch_size),
            "steps_per_epoch": self.steps_per_epoch,
            "samples_per_step": self.effective.samples,
            "datasets": [{**report.summary(batch_size), "share": share.as_dict()} for report, share in zip(self.sets, parts, strict=True)],
            "eval_datasets": [report.summary(batch_size) for report in self.eval_sets],
        }
