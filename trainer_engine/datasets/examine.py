"""Examines the datasets of a run as training will see them, and reports every problem at once."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer_engine.config.addresses import Reach
from trainer_engine.config.dataset_tables import caption_specs
from trainer_engine.config.datasets import Dataloader, ImageSet, ReferenceSet
from trainer_engine.config.family_spec import FamilySpec
from trainer_engine.config.options import TrainingOptions
from trainer_engine.config.rules.distributed import size_problems, validation_sizes
from trainer_engine.contract.errors import DatasetUnusable, Problem, errors_in
from trainer_engine.contract.path_rule import EVERYWHERE, PlaceRule
from trainer_engine.datasets.buckets import Effective, count_buckets, fill_buckets
from trainer_engine.datasets.caption_changes import CaptionChanges, changes_of, emptied
from trainer_engine.datasets.caption_filter import FilterFails
from trainer_engine.datasets.captions.base import captions_of
from trainer_engine.datasets.file_rows import FileSizes
from trainer_engine.datasets.findings import (
    beyond_canvas,
    enlarged_images,
    eval_images_trained_on,
    no_pairs_to_show,
    reference_problems,
    rounded_resolutions,
    set_problems,
    sizes_in_use,
    unsized_files,
    unusable_captions,
    unusable_place,
)
from trainer_engine.datasets.first_frames import first_frame_problems
from trainer_engine.datasets.generated import discover_generated
from trainer_engine.datasets.index import IMAGES, MOST_THREADS, Discovery, discover
from trainer_engine.datasets.index_file import Indexes
from trainer_engine.datasets.long_captions import long_captions
from trainer_engine.datasets.media.base import suffixes_of
from trainer_engine.datasets.overlooked_texts import overlooked_texts
from trainer_engine.datasets.pairing import Pairing, pair
from trainer_engine.datasets.planning import Planner
from trainer_engine.datasets.report import DatasetReport, SetReport
from trainer_engine.datasets.samples import Sample
from trainer_engine.datasets.scanning import MANY_OBJECTS, examine_all
from trainer_engine.datasets.schedule import schedule_problems
from trainer_engine.datasets.sources.base import (
    Fetching,
    FoundFile,
    LeftOut,
    MeasuredLater,
    NotFetched,
    Progress,
    Source,
    kind_of,
    open_source,
)
from trainer_engine.datasets.texts import RememberedTexts
from trainer_engine.datasets.validation_inputs import plan_inputs

NO_PRIVATE_NETWORK = Reach()
MOST_MEASURED_BYTES = 2 << 30
"""Limit of what ``validate`` reads to measure one dataset: some seconds."""


def examine(
    dataloader: Dataloader,
    options: TrainingOptions,
    spec: FamilySpec,
    *,
    on_progress: Progress | None = None,
    index_dir: Path | Indexes | None = None,
    processes: int | None = None,
    reach: Reach = NO_PRIVATE_NETWORK,
    fetches_later: bool = False,
    places: PlaceRule = EVERYWHERE,
) -> DatasetReport:
    """Examines every dataset as training does. It writes nothing but the index of image sizes and captions, in ``index_dir``.

    ``processes``: the number of processes, if the launcher's file sets it instead of ``num_processes``. ``reach``: which machines may be
    connected to. ``fetches_later``: whether a dataset that is not on this machine yet is no error, since a run fetches it; its report
    says so and has no samples. ``places``: from where captions may be read; links in a folder can lead elsewhere.

    Every problem of a dataset is in the report; nothing is raised.
    """
    sharing, group = processes or options.distributed.num_processes, options.distributed.group_size
    effective = Effective(options.run.train_batch_size, options.run.gradient_accumulation_steps, sharing, group)
    alignment, problems = _alignment(options, spec)
    changes, wrong = changes_of(dataloader, options.run.seed)
    indexes = Indexes.of(index_dir)
    context = _Context(options, alignment, spec, effective, on_progress, indexes, changes, reach, fetches_later, places)
    problems += [*wrong, *beyond_canvas(dataloader, spec, alignment), *rounded_resolutions(dataloader, alignment)]
    with MANY_OBJECTS.being_made():
        reports = [_examine_set(entry, dataloader.partners_of(entry), context) for entry in dataloader.sets_of_images]
    problems += [*reference_problems(dataloader, options, spec), *first_frame_problems(dataloader, options, spec)]
    for report in reports:
        problems += [*report.problems, *enlarged_images(report, spec)]
        cut = long_captions(report.entry, report.samples, options, spec)
        problems += [cut] if cut else []
    sets = [report for report in reports if not report.entry.is_eval]
    eval_sets = [report for report in reports if report.entry.is_eval]
    problems += eval_images_trained_on(sets, eval_sets)
    problems += size_problems(options, spec, [*validation_sizes(options), *sizes_in_use(reports)])
    inputs, broken = plan_inputs(options, alignment)
    problems += [*broken, *no_pairs_to_show(reports, options, spec)]
    by_size = options.data.data_backend_sampling == "auto-weighting"
    found = DatasetReport(sets, effective, problems, eval_sets, by_size=by_size, seed=options.run.seed, inputs=inputs)
    if sets and not errors_in(problems) and not found.is_incomplete:
        problems += schedule_problems(options, found.timeline, dataloader.image_sets)
    return found


def fetch_datasets(dataloader: Dataloader, spec: FamilySpec, fetching: Fetching) -> None:
    """Downloads the files of datasets whose source needs that. Raises DatasetUnusable with the problems of all, DiskFull, Stopped."""
    problems: list[Problem] = []
    for images in dataloader.sets_of_images:
        entries: list[ImageSet | ReferenceSet] = [images, *dataloader.partners_of(images)]
        for entry in entries:
            fetch = kind_of(entry).fetch
            try:
                if fetch:
                    fetch(entry, suffixes_of(_media_in(entry, images, spec)), fetching)
            except DatasetUnusable as error:
                problems += error.problems
            except (OSError, ValueError) as error:
                problems.append(unusable_place(entry, error))
    if problems:
        raise DatasetUnusable(problems)


def _media_in(entry: ImageSet | ReferenceSet, partner: ImageSet | None, spec: FamilySpec) -> tuple[str, ...]:
    """Returns the kinds of media in a set. Clips may have references of both kinds; a mask is always an image."""
    if isinstance(entry, ImageSet):
        return spec.clip_media if entry.video else IMAGES
    return spec.latents.media if partner and partner.video and not entry.is_mask else IMAGES


def _alignment(options: TrainingOptions, spec: FamilySpec) -> tuple[int, list[Problem]]:
    """Returns the alignment of image edges in pixels: the option if it is a multiple of the family's, else the family's with a note."""
    asked = options.data.aspect_bucket_alignment
    if asked % spec.latents.alignment_px == 0:
        return asked, []
    message = f"{spec.title} needs edges that are multiples of {spec.latents.alignment_px} pixels; {asked} is not used."
    return spec.latents.alignment_px, [Problem.note("aspect_bucket_alignment", "raised_for_family", message, got=asked)]


@dataclass(frozen=True)
class _Context:
    """The settings that examining each folder needs."""

    options: TrainingOptions
    alignment: int
    spec: FamilySpec
    effective: Effective
    on_progress: Progress | None
    indexes: Indexes
    changes: Mapping[str, CaptionChanges]
    """By the id of an image set."""
    reach: Reach
    fetches_later: bool
    places: PlaceRule

    def planner(self, entry: ImageSet, found: Discovery) -> Planner:
        """Raises OSError or ValueError if no file can have a caption."""
        source = found.source.within(self.places)
        texts = self._texts(entry, source)
        captions = captions_of(entry, texts or source)
        rounding = self.options.data.aspect_bucket_rounding
        return Planner(
            entry,
            found.source,
            captions,
            alignment=self.alignment,
            rounding=rounding,
            canvas_px=self.spec.latents.canvas_px,
            texts=texts,
            frame_stride=self.spec.frame_stride,
        )

    def _texts(self, entry: ImageSet, source: Source) -> RememberedTexts | None:
        """Returns the captions that are known already, if they are in files of a source that is quick."""
        if not caption_specs()[entry.caption_strategy].reads_files or not source.is_quick:
            return None
        return RememberedTexts(source, self.indexes)

    def discover(self, entry: ImageSet | ReferenceSet, partner: ImageSet | None = None) -> Discovery:
        """``partner``: the set whose references or masks these are.

        Raises OSError or ValueError if the place of the files cannot be used, UnusableSizes if the table of their sizes cannot.
        """
        source = open_source(entry).reached_by(self.reach)
        if self.fetches_later and source.bytes_to_measure() > MOST_MEASURED_BYTES:
            source.list_files(suffixes_of(_media_in(entry, partner, self.spec)))  # raises for fields that do not fit
            raise MeasuredLater("it is measured when a run starts")
        sizes = FileSizes(entry.parquet) if entry.parquet and entry.metadata_backend == "parquet" else None
        choose = _chooser(entry) if isinstance(entry, ImageSet) else _all
        return discover(
            source,
            media=_media_in(entry, partner, self.spec),
            index_dir=self.indexes,
            threads=min(entry.max_workers, MOST_THREADS),
            choose=lambda files: sizes.added_to(choose(files)) if sizes else choose(files),
            on_progress=self.on_progress,
        )


def _add_unusable(report: SetReport, entry: ImageSet | ReferenceSet, error: OSError | ValueError, context: _Context) -> None:
    if isinstance(error, MeasuredLater):
        report.measured_later.append(entry)
    elif context.fetches_later and isinstance(error, NotFetched):
        report.not_fetched.append(entry)
    else:
        report.problems.append(unusable_place(entry, error))


def _open_references(report: SetReport, references: Sequence[ReferenceSet], context: _Context) -> None:
    """Adds what keeps the references of a set from being opened, if the set itself cannot be examined."""
    for one in references:
        try:
            if not one.generated:
                open_source(one)
        except (OSError, ValueError) as error:
            _add_unusable(report, one, error, context)


def _paired(report: SetReport, images: Discovery, references: Sequence[ReferenceSet], context: _Context) -> list[Sample]:
    """Returns the samples with their references and masks, and adds the problems of these to the report."""
    pairings = []
    for one in references:
        try:
            found = discover_generated(images, one.generated) if one.generated else context.discover(one, report.entry)
        except (OSError, ValueError) as error:
            _add_unusable(report, one, error, context)
            return report.samples
        report.pending_references += [(one, found.pending)] if found.pending and context.fetches_later else []
        pairings.append(Pairing(report.entry, one, found, context.planner(one.as_images(report.entry), found)))
    paired = pair(report.samples, pairings)
    report.problems += [problem for pairing in pairings for problem in pairing.problems(fetches_later=context.fetches_later)]
    return paired


def _examine_set(entry: ImageSet, references: Sequence[ReferenceSet], context: _Context) -> SetReport:
    options, effective = context.options, context.effective.of_set(entry)
    report = SetReport(entry, effective)
    try:
        found = context.discover(entry)
    except (OSError, ValueError) as error:
        _add_unusable(report, entry, error, context)
        _open_references(report, references, context)
        return report
    report.files, report.pending = found.files, found.pending
    report.problems += unsized_files(entry, found)
    report.left_out += found.left_out
    try:
        planner = context.planner(entry, found)
    except (OSError, ValueError) as error:
        report.problems.append(unusable_captions(entry, error))
        return report
    report.fitter = planner.fitter
    changes = context.changes[entry.id]
    try:
        for outcome in changes.apply(_plan_all(planner, found, min(entry.max_workers, MOST_THREADS))):
            if isinstance(outcome, Sample):
                report.samples.append(outcome)
            else:
                report.left_out.append(outcome)
    except (OSError, FilterFails) as error:
        report.problems.append(changes.failure(error))
        return report
    planner.save_texts()
    report.left_out.sort()
    overlooked = overlooked_texts(entry, found.source.within(context.places), report.samples)
    report.problems += [overlooked] if overlooked else []
    if references:
        report.samples = _paired(report, found, references, context)
    report.buckets = fill_buckets(report.samples)
    oversubscribed = options.data.allow_dataset_oversubscription and not entry.repeats and not entry.is_eval
    report.at_least = effective.samples if oversubscribed else 0
    rounding = options.data.aspect_bucket_rounding
    report.counts = count_buckets(report.samples, report.buckets, repeats=entry.repeats, rounding=rounding, at_least=report.at_least)
    report.problems += set_problems(report, effective)
    nothing_left = emptied(entry, changes.text_set, report.left_out, len(report.samples))
    report.problems += [nothing_left] if nothing_left else []
    return report


def _plan_all(planner: Planner, found: Discovery, threads: int) -> Iterator[Sample | LeftOut]:
    """Plans every image. Several captions are read at once if they are on a slow disk."""
    reads_files = caption_specs()[planner.entry.caption_strategy].reads_files
    for outcomes in examine_all(found.images, planner.plan, threads if reads_files else 1):
        yield from outcomes


def _all(files: list[FoundFile]) -> list[FoundFile]:
    """Selects every file."""
    return files


def _chooser(entry: ImageSet) -> Callable[[list[FoundFile]], list[FoundFile]]:
    """Returns a function that selects ``max_num_samples`` of the files, always the same ones for the same id."""
    count = entry.max_num_samples

    def choose(files: list[FoundFile]) -> list[FoundFile]:
        if count is None or count >= len(files):
            return files
        shuffled = list(files)
        random.Random(entry.id).shuffle(shuffled)
        return sorted(shuffled[:count])

    return choose
