"""Measures the images of ``validation_input`` and plans their sizes, as those of references of any size."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import PurePath

from trainer_engine.config.options import TrainingOptions
from trainer_engine.config.validation_inputs import ValidationInput, parse_validation_inputs
from trainer_engine.contract.errors import Problem
from trainer_engine.datasets import geometry
from trainer_engine.datasets.buckets import bucket_key
from trainer_engine.datasets.index import IMAGES
from trainer_engine.datasets.media.base import BrokenImage, medium_of, suffixes_of
from trainer_engine.datasets.samples import CropPlan, Sample
from trainer_engine.datasets.sources.base import SourceFile, reason_of
from trainer_engine.datasets.sources.local import LocalSource

ROOT = LocalSource("/")
"""Inputs lie anywhere, so their names are absolute paths."""


@dataclass(frozen=True)
class PlannedInput:
    """An image to edit in every validation, as the network sees it."""

    input: ValidationInput
    sample: Sample


def plan_inputs(options: TrainingOptions, alignment: int) -> tuple[list[PlannedInput], list[Problem]]:
    """Returns the usable inputs of a run, and the problem of each other one. ``alignment``: edges are multiples of this."""
    if options.validation.validation_disable:
        return [], []
    planned, problems = [], []
    for one in parse_validation_inputs(options.validation.validation_input)[0]:
        try:
            planned.append(PlannedInput(one, _plan(one, options, alignment)))
        except (BrokenImage, OSError) as error:
            reason = error.reason if isinstance(error, BrokenImage) else reason_of(error)
            message = f"The image {one.path} cannot be used: {reason}."
            problems.append(Problem.error(one.place, "broken_image", message, got=one.path, expected="an image file"))
    return planned, problems


def _plan(one: ValidationInput, options: TrainingOptions, alignment: int) -> Sample:
    """Raises BrokenImage, OSError."""
    path = os.path.abspath(one.path)  # noqa: PTH100 - links stay as they are
    if PurePath(path).suffix.lower() not in suffixes_of(IMAGES).usable:
        raise BrokenImage(path, "its suffix is not that of an image")
    name = path.removeprefix("/")
    found = ROOT.stat(name)
    size, remark, _, _ = medium_of(name).measure(SourceFile(ROOT, name, found.size_bytes))
    data = options.data
    aspect = geometry.aspect_of(size, data.aspect_bucket_rounding)
    target = geometry.target_size(aspect, data.resolution, data.resolution_type, alignment)
    return Sample(
        source=ROOT,
        name=name,
        size_bytes=found.size_bytes,
        version=found.version,
        width=size[0],
        height=size[1],
        resized=geometry.intermediary_size(size, target, maximum=None, downsample=None, resolution_type=data.resolution_type),
        target=target,
        crop=CropPlan("center", aspect),
        bucket=bucket_key(target, data.aspect_bucket_rounding),
        captions=(one.prompt,),
        remark=remark,
    )
