"""Everything there is to say about the datasets of a run: the samples for training, and the findings for people."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainer_engine.config.datasets import Dataloader, ImageSet, ReferenceSet
from trainer_engine.config.families import FamilySpec
from trainer_engine.config.options import TrainingOptions
from trainer_engine.contract.errors import Problem
from trainer_engine.datasets.buckets import Bucket, Effective, count_buckets, fill_buckets, short_buckets
from trainer_engine.datasets.index import CHUNK_FILES, MOST_THREADS, Discovery, Progress, discover
from trainer_engine.datasets.pairing import Pairing, pair
from trainer_engine.datasets.planning import Planner
from trainer_engine.datasets.remarks import remarks
from trainer_engine.datasets.samples import Sample
from trainer_engine.datasets.shares import SetNumbers, shares
from trainer_engine.datasets.sources.local import FoundFile, LeftOut, printable, reason_of

MAX_LISTED = 10
"""Files named in a message."""
MOST_LISTED = 200
"""Files listed in a summary."""


@dataclass
class SetReport:
    """What one dataset holds."""

    entry: ImageSet
    files: int = 0
    """Image files below the folder."""
    samples: list[Sample] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    buckets: dict[str, list[int]] = field(default_factory=dict)
    """Bucket -> indices of its samples."""
    counts: list[Bucket] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    at_least: int = 0
    """Samples that a bucket gives in an epoch even where it has fewer; they are repeated for it."""

    @property
    def samples_per_epoch(self) -> int:
        """0 for a set that is never drawn."""
        return sum(bucket.samples for bucket in self.counts) if self.entry.is_trained else 0

    def batches_per_epoch(self, batch_size: int) -> int:
        return sum(bucket.batches(batch_size) for bucket in self.counts) if self.entry.is_trained else 0

    def summary(self, batch_size: int) -> dict[str, Any]:
        return {
            "id": self.entry.id,
            "folder": printable(self.entry.instance_data_dir),
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
    """What the datasets of a run hold together."""

    sets: list[SetReport]
    """Of those that are trained on."""
    effective: Effective
    problems: list[Problem] = field(default_factory=list)
    """Errors, warnings and notes of all sets."""
    eval_sets: list[SetReport] = field(default_factory=list)
    """Of those that are held out."""
    by_size: bool = True
    """Whether ``data_backend_sampling`` draws datasets by their size."""

    @property
    def samples_per_epoch(self) -> int:
        return sum(report.samples_per_epoch for report in self.sets)

    def batches_per_epoch(self, train_batch_size: int) -> int:
        """Batches of this many samples; over several processes, pass what all of them take together."""
        return sum(report.batches_per_epoch(train_batch_size) for report in self.sets)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in which every sample is seen."""
        batches = self.batches_per_epoch(self.effective.train_batch_size * self.effective.processes)
        return -(-batches // self.effective.accumulation)

    def summary(self) -> dict[str, Any]:
        """The report as JSON."""
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


def examine(
    dataloader: Dataloader,
    options: TrainingOptions,
    spec: FamilySpec,
    *,
    on_progress: Progress | None = None,
    index_dir: Path | None = None,
    processes: int | None = None,
) -> DatasetReport:
    """Look at every dataset as training will. Writes nothing, unless ``index_dir`` names a folder for the memory of sizes.

    ``processes``: how many share a step, where a launcher's file says so and not ``num_processes``.

    Whatever is wrong with a dataset is in the report; nothing is raised.
    """
    sharing = processes or options.distributed.num_processes
    effective = Effective(options.run.train_batch_size, options.run.gradient_accumulation_steps, sharing)
    alignment, problems = _alignment(options, spec)
    looking = _Looking(options, alignment, effective, on_progress, index_dir)
    reports = [_examine_set(entry, dataloader.references_of(entry), looking) for entry in dataloader.sets_of_images]
    problems += _reference_problems(dataloader, options, spec)
    for report in reports:
        problems += report.problems
    sets = [report for report in reports if not report.entry.is_held_out]
    held_out = [report for report in reports if report.entry.is_held_out]
    problems += _trained_after_all(sets, held_out)
    return DatasetReport(sets, effective, problems, held_out, by_size=options.data.data_backend_sampling == "auto-weighting")


def _trained_after_all(sets: Sequence[SetReport], held_out: Sequence[SetReport]) -> Iterator[Problem]:
    """Held-out files that are trained on under another set tell nothing of images that the network has not seen."""
    trained = {sample.path for report in sets if held_out and report.entry.is_trained for sample in report.samples}
    for report in held_out:
        seen = [printable(sample.name) for sample in report.samples if sample.path in trained]
        if seen:
            named = "; ".join(seen[:MAX_LISTED]) + (f"; and {len(seen) - MAX_LISTED} more" if len(seen) > MAX_LISTED else "")
            message = f"dataset {report.entry.id}: {len(seen)} of its {len(report.samples)} images are trained on as well: {named}."
            hint = "move held-out images out of the folders that are trained on"
            yield Problem.warning(report.entry.option("instance_data_dir"), "held_out_but_trained", message, hint=hint)


def _alignment(options: TrainingOptions, spec: FamilySpec) -> tuple[int, list[Problem]]:
    """Pixels that image edges are multiples of: the family's, unless the option asks for a multiple of it."""
    asked = options.data.aspect_bucket_alignment
    if asked % spec.latents.alignment_px == 0:
        return asked, []
    message = f"{spec.title} needs edges that are multiples of {spec.latents.alignment_px} pixels; {asked} is not used."
    return spec.latents.alignment_px, [Problem.note("aspect_bucket_alignment", "raised_for_family", message, got=asked)]


@dataclass(frozen=True)
class _Looking:
    """What every look at a folder needs."""

    options: TrainingOptions
    alignment: int
    effective: Effective
    on_progress: Progress | None
    index_dir: Path | None

    @property
    def threads(self) -> int:
        return min(self.options.data.max_workers, MOST_THREADS)

    def planner(self, entry: ImageSet) -> Planner:
        return Planner(entry, self.alignment, self.options.data.aspect_bucket_rounding)

    def discover(self, folder: str, entry: ImageSet | None = None) -> Discovery:
        """Raises OSError, ValueError."""
        choose = _chooser(entry) if entry else None
        return discover(folder, index_dir=self.index_dir, threads=self.threads, choose=choose, on_progress=self.on_progress)


def _reference_problems(dataloader: Dataloader, options: TrainingOptions, spec: FamilySpec) -> Iterator[Problem]:
    """Whether the flavour looks at references, and has them where it is nothing without."""
    flavour = options.model.model_flavour or spec.default_flavour
    for entry in dataloader.sets_of_images:
        paired = dataloader.references_of(entry)
        if flavour in spec.needs_references and not paired and (entry.is_trained or entry.is_held_out):
            message = f"dataset {entry.id}: {spec.title} {flavour} edits references, and this set has none."
            expected = 'the id of a conditioning set: ["references"]'
            yield Problem.error(entry.option("conditioning_data"), "references_needed", message, expected=expected)
        elif paired and flavour not in spec.takes_references:
            message = f"dataset {entry.id}: {spec.title} {flavour} looks at no references."
            hint = "remove conditioning_data and the conditioning sets, or choose another model"
            yield Problem.error(
                entry.option("conditioning_data"), "no_references", message, got=", ".join(entry.conditioning_data), hint=hint
            )


def _paired(report: SetReport, references: Sequence[ReferenceSet], looking: _Looking) -> list[Sample]:
    """The samples with their references; what is wrong with these goes into the report."""
    pairings = []
    for one in references:
        try:
            found = looking.discover(one.instance_data_dir)
        except (OSError, ValueError) as error:
            report.problems.append(_unusable_folder(one, error))
            return report.samples
        pairings.append(Pairing(report.entry, one, found, looking.planner(one.as_images(report.entry))))
    paired = pair(report.samples, pairings)
    report.problems += [problem for pairing in pairings for problem in pairing.problems()]
    return paired


def _examine_set(entry: ImageSet, references: Sequence[ReferenceSet], looking: _Looking) -> SetReport:
    report, options, effective = SetReport(entry), looking.options, looking.effective
    try:
        found = looking.discover(entry.instance_data_dir, entry)
    except (OSError, ValueError) as error:
        report.problems.append(_unusable_folder(entry, error))
        return report
    report.files = found.files
    report.left_out += found.left_out
    for outcome in _plan_all(looking.planner(entry), found, looking.threads):
        if isinstance(outcome, Sample):
            report.samples.append(outcome)
        else:
            report.left_out.append(outcome)
    report.left_out.sort()
    if references:
        report.samples = _paired(report, references, looking)
    report.buckets = fill_buckets(report.samples)
    oversubscribed = options.data.allow_dataset_oversubscription and not entry.repeats and not entry.is_held_out
    report.at_least = effective.samples if oversubscribed else 0
    rounding = options.data.aspect_bucket_rounding
    report.counts = count_buckets(report.samples, report.buckets, repeats=entry.repeats, rounding=rounding, at_least=report.at_least)
    report.problems += _findings(report, effective)
    return report


def _plan_all(planner: Planner, found: Discovery, threads: int) -> Iterator[Sample | LeftOut]:
    """Captions may lie in files of their own, on slow disks: several are read at once."""
    if planner.entry.caption_strategy != "textfile":
        yield from map(planner.plan, found.images)
        return
    chunks = [found.images[start : start + CHUNK_FILES] for start in range(0, len(found.images), CHUNK_FILES)]
    with ThreadPoolExecutor(max(1, min(threads, len(chunks)))) as pool:
        for outcomes in pool.map(lambda chunk: [planner.plan(image) for image in chunk], chunks):
            yield from outcomes


def _chooser(entry: ImageSet) -> Callable[[list[FoundFile]], list[FoundFile]]:
    """Takes ``max_num_samples`` of the files, always the same ones for the same id."""
    count = entry.max_num_samples

    def choose(files: list[FoundFile]) -> list[FoundFile]:
        if count is None or count >= len(files):
            return files
        shuffled = list(files)
        random.Random(entry.id).shuffle(shuffled)
        return sorted(shuffled[:count])

    return choose


def _unusable_folder(entry: ImageSet | ReferenceSet, error: OSError | ValueError) -> Problem:
    folder = printable(entry.instance_data_dir)
    codes: dict[type[Exception], tuple[str, str]] = {
        FileNotFoundError: ("missing_folder", "does not exist"),
        NotADirectoryError: ("not_a_folder", "is not a folder"),
    }
    reason = reason_of(error) if isinstance(error, OSError) else str(error)
    code, what = codes.get(type(error), ("unreadable_folder", f"cannot be read: {reason}"))
    message = f"dataset {entry.id}: the folder {folder} {what}."
    return Problem.error(entry.option("instance_data_dir"), code, message, got=folder, expected="a folder of images")


def _findings(report: SetReport, effective: Effective) -> Iterator[Problem]:
    entry, option = report.entry, report.entry.option("instance_data_dir")
    folder = printable(entry.instance_data_dir)
    if not report.files:
        message = f"dataset {entry.id}: there is no image file in {folder}."
        yield Problem.error(option, "no_images", message, got=folder, expected="a folder with images; folders in it are searched too")
        return
    for broken, code in ((True, "files_broken"), (False, "files_filtered")):
        files = [file for file in report.left_out if file.broken is broken]
        if files:
            make = Problem.warning if broken else Problem.note
            message = f"dataset {entry.id}: {len(files)} of {report.files} files are left out: {_named(files)}."
            yield make(option, code, message, hint="mend or remove them" if broken else "")
    yield from remarks(entry, report.samples)
    if not report.samples:
        what = "evaluated" if entry.is_held_out else "trained"
        message = f"dataset {entry.id}: none of the {report.files} files in {folder} can be {what} on. {_reasons(report.left_out)}."
        yield Problem.error(option, "no_usable_images", message, got=folder, expected="at least one usable image")
    elif entry.is_trained:
        short = short_buckets(entry, report.counts, effective)
        if short:
            yield short


def _named(files: Sequence[LeftOut]) -> str:
    told = "; ".join(f"{printable(file.name)} ({printable(file.reason)})" for file in files[:MAX_LISTED])
    return f"{told}; and {len(files) - MAX_LISTED} more" if len(files) > MAX_LISTED else told


def _reasons(files: Sequence[LeftOut]) -> str:
    counted = Counter(printable(file.reason) for file in files).most_common(3)
    return "; ".join(f"{count} times: {reason}" for reason, count in counted)
