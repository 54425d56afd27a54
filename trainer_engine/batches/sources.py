"""From examined datasets to the sampler. Needs no torch: ``simpletuner plan`` takes the same way as training."""

from __future__ import annotations

from collections.abc import Sequence

from trainer_engine.batches.sampler import BatchSizes, DataSource, Sampler
from trainer_engine.config.options import TrainingOptions
from trainer_engine.contract.errors import DatasetUnusable
from trainer_engine.datasets.buckets import fill_buckets
from trainer_engine.datasets.report import DatasetReport, SetReport
from trainer_engine.datasets.samples import Sample
from trainer_engine.datasets.schedule import schedule_problems


def trained_sets(report: DatasetReport) -> list[SetReport]:
    """The sets that batches come from."""
    return [found for found in report.sets if found.entry.is_trained]


def data_source(found: SetReport, samples: Sequence[Sample]) -> DataSource:
    """A set of which these samples can be trained on."""
    return DataSource(
        id=found.entry.id,
        buckets=tuple(tuple(samples[index] for index in members) for members in fill_buckets(samples).values()),
        repeats=found.entry.repeats,
        weight=found.entry.probability,
        at_least=found.at_least,
        batch=found.effective.batch,
        gates=found.entry.gates,
        is_regularisation=found.entry.is_regularisation_data,
        timestep_offset=found.entry.timestep_sampling_offset,
        adapter_strength=found.entry.slider_strength,
        crops=found.crops(samples),
    )


def batch_sizes(options: TrainingOptions, processes: int) -> BatchSizes:
    """The batches that so many processes take together."""
    return BatchSizes(options.run.train_batch_size * processes, options.run.gradient_accumulation_steps)


def make_sampler(sources: Sequence[DataSource], options: TrainingOptions, processes: int) -> Sampler:
    """The order of a run's samples. Raises DatasetUnusable if no set is left before the run ends."""
    by_size = options.data.data_backend_sampling == "auto-weighting"
    sampler = Sampler(sources, batch_sizes(options, processes), options.run.seed, by_size=by_size)
    problems = list(schedule_problems(options, sampler.timeline, ()))
    if problems:
        raise DatasetUnusable(problems)
    return sampler
