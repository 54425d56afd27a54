"""Problems found in datasets: unusable folders and files, missing references, short buckets and images to check."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence

from trainer_engine.config.addresses import DOWNLOAD_VARIABLE, GB
from trainer_engine.config.datasets import Dataloader, ImageSet, ReferenceSet
from trainer_engine.config.family_spec import FamilySpec
from trainer_engine.config.options import TrainingOptions
from trainer_engine.config.token_splitting import SizeInUse
from trainer_engine.contract.errors import Problem
from trainer_engine.datasets import geometry
from trainer_engine.datasets.buckets import Effective, short_buckets
from trainer_engine.datasets.file_rows import UnusableSizes
from trainer_engine.datasets.index import Discovery
from trainer_engine.datasets.report import SetReport
from trainer_engine.datasets.samples import Sample
from trainer_engine.datasets.sources.base import LeftOut, NotFetched, WrongField, printable, reason_of

MAX_LISTED = 10
"""Files named in a message."""
ENLARGED = 1.01
"""Scale above which an image counts as enlarged; less is rounding."""
LIMITS = f"{geometry.SMALLEST_ASPECT:g} to {geometry.LARGEST_ASPECT:g}"


def unusable_place(entry: ImageSet | ReferenceSet, error: OSError | ValueError) -> Problem:
    """Returns the problem of a dataset whose files cannot be listed, or the table of whose sizes cannot be read."""
    if isinstance(error, WrongField):
        return wrong_field(entry, error)
    if isinstance(error, UnusableSizes):
        message = f"dataset {entry.id}: metadata_backend=parquet finds no sizes: {error}."
        return Problem.error(entry.option("parquet"), "unreadable_table", message)
    place, noun = printable(entry.place), entry.source.place_noun
    codes: dict[type[Exception], tuple[str, str]] = {
        FileNotFoundError: ("missing_folder", "does not exist"),
        NotADirectoryError: ("not_a_folder", "is not a folder"),
        NotFetched: ("not_fetched", "is not on this machine: it is downloaded when a run starts"),
    }
    code, what = codes.get(type(error), ("unreadable_folder", f"cannot be read: {_reason(error)}"))
    message = f"dataset {entry.id}: the {noun} {place} {what}."
    return Problem.error(entry.place_option, code, message, got=place, expected=f"a {noun} of images")


def wrong_field(entry: ImageSet | ReferenceSet, error: WrongField) -> Problem:
    """Returns the problem of a field that does not fit what lies in the place of its dataset."""
    value = entry.own_fields.get(error.field)
    message = f"dataset {entry.id}: {error}."
    return Problem.error(entry.option(error.field), error.code, message, got=value, expected=error.expected)


def unsized_files(entry: ImageSet, found: Discovery) -> Iterator[Problem]:
    """Yields a note if the table of sizes lacks some of the files."""
    missing = found.files - found.sized
    if entry.metadata_backend == "parquet" and missing:
        message = f"dataset {entry.id}: the table in parquet has no size for {missing} of {found.files} files; these are opened."
        yield Problem.note(entry.option("parquet"), "sizes_missing", message, got=missing)


def unusable_captions(entry: ImageSet, error: OSError | ValueError) -> Problem:
    """Returns the problem of a dataset whose captions cannot be read at all."""
    if isinstance(error, WrongField):
        return wrong_field(entry, error)
    message = f"dataset {entry.id}: caption_strategy={entry.caption_strategy} finds no caption: {_reason(error)}."
    return Problem.error(entry.option("caption_strategy"), "unreadable_captions", message, got=entry.caption_strategy)


def _reason(error: OSError | ValueError) -> str:
    return reason_of(error) if isinstance(error, OSError) else str(error)


def set_problems(report: SetReport, effective: Effective) -> Iterator[Problem]:
    """Yields the problems of one examined dataset."""
    entry, option = report.entry, report.entry.place_option
    folder = printable(entry.place)
    if report.pending:
        count, largest = report.pending.files, report.pending.largest_bytes
        limit = f" All files may take {largest / GB:g} GB ({DOWNLOAD_VARIABLE})." if largest else ""
        message = f"dataset {entry.id}: {count} of {report.files + count} files are fetched when the run starts.{limit}"
        hint = "numbers of samples and steps count the files that are here" if report.files else "samples and steps are counted then"
        yield Problem.note(option, "files_pending", message, got=count, hint=hint)
    if not report.files:
        if report.pending:
            return
        message = f"dataset {entry.id}: there is no {entry.noun} file in {folder}."
        expected = f"a {entry.source.place_noun} with {entry.noun}s, also in its subfolders"
        hint = (
            ""
            if entry.is_eval
            else "set dataset_type to video for clips"
            if entry.video is None
            else "set dataset_type to image for images"
        )
        yield Problem.error(option, "no_images", message, got=folder, expected=expected, hint=hint)
        return
    for broken, code in ((True, "files_broken"), (False, "files_filtered")):
        files = [file for file in report.left_out if file.broken is broken]
        if files:
            make = Problem.warning if broken else Problem.note
            message = f"dataset {entry.id}: {len(files)} of {report.files} files are left out: {_named_files(files)}."
            yield make(option, code, message, hint="repair or remove them" if broken else "")
    yield from _remarks(entry, report.samples)
    if not report.samples and not report.waits_for_files:
        what = "evaluated" if entry.is_eval else "trained"
        message = f"dataset {entry.id}: none of the {report.files} files in {folder} can be {what} on. {_reasons(report.left_out)}."
        yield Problem.error(option, "no_usable_images", message, got=folder, expected=f"at least one usable {entry.noun}")
    elif entry.is_trained and not report.waits_for_files:
        short = short_buckets(entry, report.counts, effective)
        if short:
            yield short


def _remarks(entry: ImageSet, samples: Sequence[Sample]) -> Iterator[Problem]:
    """Yields notes about images with extreme aspect ratios or unusable colour profiles."""
    option = entry.place_option
    keeps_ends = entry.crop and entry.crop_aspect != "preserve"
    extreme = [] if keeps_ends else [sample for sample in samples if geometry.is_beyond_limits((sample.width, sample.height))]
    if extreme:
        message = f"dataset {entry.id}: {len(extreme)} images are too narrow or too wide and lose both ends: {_named(extreme)}."
        yield Problem.note(option, "extreme_aspect", message, expected=f"an aspect ratio (width / height) of {LIMITS}")
    examined = [*samples, *(reference.sample for sample in samples for reference in sample.references)]
    remarked = [sample for sample in examined if sample.remark]
    if remarked:
        named = _listed([f"{printable(sample.name)} ({sample.remark})" for sample in remarked])
        message = f"dataset {entry.id}: the colours of {len(remarked)} images are used without conversion: {named}."
        hint = "save them in sRGB if their colours matter"
        yield Problem.note(option, "colours_not_converted", message, hint=hint)


def reference_problems(dataloader: Dataloader, options: TrainingOptions, spec: FamilySpec) -> Iterator[Problem]:
    """Yields an error for each image set without references that the flavour needs, or with references that it cannot use."""
    flavour = options.model.model_flavour or spec.default_flavour
    for entry in dataloader.sets_of_images:
        paired = dataloader.references_of(entry)
        if flavour in spec.needs_references and not paired and (entry.is_trained or entry.is_eval):
            message = f"dataset {entry.id}: {spec.title} {flavour} needs reference images, but this set has none."
            expected = 'the id of a conditioning set: ["references"]'
            yield Problem.error(entry.option("conditioning_data"), "references_needed", message, expected=expected)
        elif paired and not options.model.sees_control and flavour not in spec.takes_references:
            message = f"dataset {entry.id}: {spec.title} {flavour} does not use reference images."
            hint = "remove conditioning_data and the conditioning sets, or choose another model"
            option = entry.option("conditioning" if paired[0].generated else "conditioning_data")
            yield Problem.error(option, "no_references", message, got=", ".join(one.id for one in paired), hint=hint)
        elif spec.most_references and len(paired) > spec.most_references:
            message = f"dataset {entry.id}: each image has {len(paired)} references, and {spec.title} sees at most {spec.most_references}."
            expected = f"at most {spec.most_references} conditioning sets"
            yield Problem.error(entry.option("conditioning_data"), "too_many_references", message, got=len(paired), expected=expected)
        elif spec.edits_in_place(flavour) and not all(one.shares_crops for one in paired):
            loose = ", ".join(one.id for one in paired if not one.shares_crops)
            message = (
                f"dataset {entry.id}: {spec.title} {flavour} sees a reference in the place of its image; those of {loose} have any size."
            )
            expected = "conditioning_type=reference_strict"
            yield Problem.error(entry.option("conditioning_data"), "reference_of_any_size", message, got=loose, expected=expected)


def no_pairs_to_show(sets: Sequence[SetReport], options: TrainingOptions, spec: FamilySpec) -> Iterator[Problem]:
    """Yields an error if validations shall use the references or first frames of datasets, and no dataset lends any."""
    animates, validation = spec.animates(options.model.model_flavour), options.validation
    lending = (found for found in sets if not found.entry.disable_validation)
    shown = (found for found in lending if any(sample.references or animates for sample in found.samples))
    edits = spec.edits_in_place(options.model.model_flavour)
    needed = options.model.sees_control or ((animates or edits) and any(found.samples for found in sets))
    wanted = validation.validation_using_datasets or (needed and not validation.validation_input)
    if wanted and not validation.validation_disable and not any(shown):
        what = "a first frame" if animates else "references"
        expected = "a set without disable_validation" if animates else "an image set with conditioning_data"
        message = f"No dataset has {what} that validations may use: each has none, or disable_validation."
        yield Problem.error("validation_using_datasets", "no_pairs", message, got=True, expected=expected)


def eval_images_trained_on(sets: Sequence[SetReport], eval_sets: Sequence[SetReport]) -> Iterator[Problem]:
    """Warns about eval images that are also trained on. Their loss says nothing about images that the network has not seen."""
    trained = {sample.location for report in sets if eval_sets and report.entry.is_trained for sample in report.samples}
    for report in eval_sets:
        seen = [printable(sample.name) for sample in report.samples if sample.location in trained]
        if seen:
            named = "; ".join(seen[:MAX_LISTED]) + (f"; and {len(seen) - MAX_LISTED} more" if len(seen) > MAX_LISTED else "")
            message = f"dataset {report.entry.id}: {len(seen)} of its {len(report.samples)} images are also trained on: {named}."
            hint = "move eval images out of the folders to train on"
            yield Problem.warning(report.entry.place_option, "held_out_but_trained", message, hint=hint)


def _named_files(files: Sequence[LeftOut]) -> str:
    return _listed([f"{printable(file.name)} ({printable(file.reason)})" for file in files])


def _reasons(files: Sequence[LeftOut]) -> str:
    counted = Counter(printable(file.reason) for file in files).most_common(3)
    return "; ".join(f"{count} times: {reason}" for reason, count in counted)


def _named(samples: Sequence[Sample]) -> str:
    return _listed([printable(sample.name) for sample in samples])


def _listed(names: Sequence[str]) -> str:
    shown = "; ".join(names[:MAX_LISTED])
    return f"{shown}; and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else shown


def sizes_in_use(sets: Sequence[SetReport]) -> Iterator[SizeInUse]:
    """Yields the sizes that the network sees: of each bucket, and of references, which follow the image in one sequence."""
    for report in sets:
        option = report.entry.option("resolution")
        for bucket in report.counts:
            yield SizeInUse(option, bucket.title, bucket.size, bucket.frames)
        references = {reference.sample.target for sample in report.samples for reference in sample.references}
        for width, height in sorted(references):
            yield SizeInUse(option, f"references of {width}x{height}", (width, height))


def beyond_canvas(dataloader: Dataloader, spec: FamilySpec, alignment: int) -> Iterator[Problem]:
    """Yields an error for each set whose resolution asks for more pixels than the network takes; other aspects are made to fit."""
    most = spec.latents.canvas_px
    for entry in dataloader.sets_of_images if most else ():
        width, height = geometry.target_size(1.0, entry.resolution, entry.resolution_type, alignment)
        if width * height > most:
            edge = math.isqrt(most)
            message = f"dataset {entry.id}: {spec.title} takes images of {edge}x{edge} pixels at most; squares would have {width}x{height}."
            expected = f"at most {edge} with resolution_type=pixel_area"
            yield Problem.error(entry.option("resolution"), "beyond_canvas", message, got=entry.resolution, expected=expected)


def rounded_resolutions(dataloader: Dataloader, alignment: int) -> Iterator[Problem]:
    """Yields a note for each set whose resolution is an edge in pixels that squares do not have, because theirs are aligned."""
    for entry in dataloader.sets_of_images:
        edge, _ = geometry.target_size(1.0, entry.resolution, entry.resolution_type, alignment)
        if entry.resolution_type != "area" and edge != entry.resolution:
            message = (
                f"dataset {entry.id}: squares are trained with {edge}x{edge} pixels in place of resolution={entry.resolution:g}; edges are "
                f"multiples of {alignment} pixels."
            )
            yield Problem.note(entry.option("resolution"), "resolution_rounded", message, got=entry.resolution, expected=f"such as {edge}")


def enlarged_images(report: SetReport, spec: FamilySpec) -> Iterator[Problem]:
    """A warning if images are enlarged in a run of a network that is given the size of their files."""
    if not spec.sees_image_sizes:
        return
    factors = {sample.name: max(sample.resized[0] / sample.width, sample.resized[1] / sample.height) for sample in report.samples}
    enlarged = {name: factor for name, factor in factors.items() if factor > ENLARGED}
    if not enlarged:
        return
    most = max(enlarged, key=lambda name: enlarged[name])
    message = (
        f"dataset {report.entry.id}: {len(enlarged)} of {len(factors)} images are smaller than they are trained, and are enlarged, most "
        f"of all {printable(most)} ({enlarged[most]:.1f} times). {spec.title} is given the size of each file: it learns their blur as that "
        "of small images, and shows little of it in larger ones."
    )
    hint = "minimum_image_size leaves small images out; a lower resolution enlarges fewer"
    yield Problem.warning(report.entry.option("resolution"), "images_enlarged", message, got=len(enlarged), hint=hint)
