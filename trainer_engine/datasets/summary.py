"""The report about the datasets of a run as JSON: for ``validate``, for the run's folder and for its address in the API."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from trainer_engine.config.options import TrainingOptions
from trainer_engine.datasets.buckets import Bucket, Effective
from trainer_engine.datasets.crops import crop_window
from trainer_engine.datasets.report import DatasetReport, SetReport
from trainer_engine.datasets.samples import Sample
from trainer_engine.datasets.schedule import understood_length
from trainer_engine.datasets.shares import SetNumbers, shares
from trainer_engine.datasets.sources.base import LeftOut, printable

MOST_LISTED = 200
"""Files and buckets that are listed for a dataset."""
MOST_LISTED_TOGETHER = 4_000
"""The same for all datasets together; of each at least ``LEAST_LISTED``."""
LEAST_LISTED = 4
REASONS = 20
EXAMPLES = 3
LONGEST_CAPTION = 200
"""Characters of a caption that are shown."""
NUMBERS = re.compile(r"(?<![\w.=(])\d[\d.x]*")
"""Numbers of a single file in the reason why it is left out, such as its size; those of the configuration follow ``=`` or ``(``."""


def report_document(report: DatasetReport, options: TrainingOptions) -> dict[str, Any]:
    """Returns the complete report: the datasets, and the steps and epochs that follow from them."""
    return {**summarise(report), **understood_length(options, report.timeline)}


def summarise(report: DatasetReport) -> dict[str, Any]:
    """Returns the numbers of every dataset, what batches and accumulation do, and some examples. Its size is bounded."""
    numbers = [SetNumbers(one.batches_per_epoch, one.entry.probability, one.entry.slider_side) for one in report.sets]
    parts = shares(numbers, by_size=report.by_size)
    most = max(LEAST_LISTED, min(MOST_LISTED, MOST_LISTED_TOGETHER // max(1, len(report.sets) + len(report.eval_sets))))
    return {
        "samples_per_epoch": report.samples_per_epoch,
        "batches_per_epoch": report.batches_per_epoch,
        "steps_per_epoch": report.steps_per_epoch,
        "samples_per_step": report.effective.samples,
        "batches": _batches(report),
        "datasets": [{**_of_set(one, report.seed, most), "share": share.as_dict()} for one, share in zip(report.sets, parts, strict=True)],
        "eval_datasets": [_of_set(one, report.seed, most) for one in report.eval_sets],
    }


def _batches(report: DatasetReport) -> dict[str, Any]:
    """How samples become optimizer steps in an epoch with all sets."""
    effective, filled = report.effective, -report.batches_per_epoch % report.effective.accumulation
    text = f"a step takes {effective.accumulation} x {effective.batch_text}" if effective.accumulation > 1 else effective.batch_text
    text += f"; the last step of an epoch is filled up with {filled} of its first batches" if filled else ""
    return {
        "train_batch_size": effective.train_batch_size,
        "gradient_accumulation_steps": effective.accumulation,
        "num_processes": effective.processes,
        "filled_up": filled,
        "text": text,
    }


def _of_set(found: SetReport, seed: int, most: int) -> dict[str, Any]:
    return {
        "id": found.entry.id,
        "folder": printable(found.entry.place),
        "files": found.files,
        "usable": len(found.samples),
        "samples_per_epoch": found.samples_per_epoch,
        "batches_per_epoch": found.batches_per_epoch,
        "batch_size": found.effective.batch,
        "left_out_count": len(found.left_out),
        "left_out": [{"path": printable(file.name), "reason": printable(file.reason)} for file in found.left_out[:most]],
        "left_out_reasons": _reasons(found.left_out),
        "bucket_count": len(found.counts),
        "buckets": [_of_bucket(bucket, found.effective) for bucket in found.counts[:most]],
        **_of_clips(found),
        "repeated": _repeated(found),
        "crops": [_crop(sample, seed) for sample in _spread(found.samples)],
        "captions": [_captions(sample) for sample in _spread(found.samples)],
    }


def _of_clips(found: SetReport) -> dict[str, Any]:
    """The frames of a set of clips: how many are trained on, and the rates of the files; nothing for a set of images."""
    lengths = [sample.frames for sample in found.samples]
    if found.entry.video is None or not lengths:
        return {}
    rates = [sample.frame_rate or 0.0 for sample in found.samples]
    return {
        "frames": {"fewest": min(lengths), "most": max(lengths), "total": sum(lengths)},
        "frame_rate": {"lowest": round(min(rates), 3), "highest": round(max(rates), 3)},
    }


def _of_bucket(bucket: Bucket, effective: Effective) -> dict[str, Any]:
    return {
        "aspect": bucket.aspect,
        "width": bucket.size[0],
        "height": bucket.size[1],
        **({"frames": bucket.frames} if bucket.frames > 1 else {}),
        "images": bucket.images,
        "samples": bucket.samples,
        "batches": bucket.batches(effective.batch),
        "times_seen": round(bucket.times_seen(effective.batch), 3),
    }


def _reasons(left_out: Sequence[LeftOut]) -> list[dict[str, Any]]:
    """How many files are left out for each reason, the most frequent ones first."""
    counted = Counter(NUMBERS.sub("…", printable(file.reason)) for file in left_out)
    return [{"reason": reason, "files": files} for reason, files in counted.most_common(REASONS)]


def _repeated(found: SetReport) -> dict[str, Any]:
    """The buckets that are too small for a batch, and how often the image that is repeated most is seen in an epoch."""
    repeats = found.entry.repeats
    short = [one for one in found.counts if one.is_short(repeats, found.effective.batch)]
    return {
        "buckets": len(short),
        "images": sum(one.images for one in short),
        "most_times_seen": round(max((one.times_seen(found.effective.batch) for one in short), default=0.0), 3),
    }


def _spread(samples: Sequence[Sample]) -> list[Sample]:
    """Some samples from all over the dataset."""
    return [samples[number * len(samples) // EXAMPLES] for number in range(EXAMPLES)] if len(samples) >= EXAMPLES else list(samples)


def _crop(sample: Sample, seed: int) -> dict[str, Any]:
    """The file's size, the size that it is scaled to, and the box that is cut out of the scaled image: left, top, right, bottom."""
    left, top = crop_window(sample, seed)
    return {
        "path": printable(sample.name),
        "size": [sample.width, sample.height],
        "resized": list(sample.resized),
        "box": [left, top, left + sample.target[0], top + sample.target[1]],
    }


def _captions(sample: Sample) -> dict[str, Any]:
    return {
        "path": printable(sample.name),
        "captions": [_cut(caption) for caption in sample.captions[:EXAMPLES]],
        "count": len(sample.captions),
    }


def _cut(caption: str) -> str:
    """Returns the start of a caption. Half a surrogate pair, which JSON could not be sent with, stays an escape."""
    shown = caption if len(caption) <= LONGEST_CAPTION else f"{caption[:LONGEST_CAPTION]}…"
    return shown.encode("utf-8", "backslashreplace").decode()
