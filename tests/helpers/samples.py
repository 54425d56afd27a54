"""Samples of image sets as the discovery makes them, without a dataloader file around."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from trainer_engine.datasets.geometry import cover_scale, scaled
from trainer_engine.datasets.samples import CropPlan, Sample
from trainer_engine.datasets.sources.base import SourceFile
from trainer_engine.datasets.sources.local import LocalSource


def sample_of(
    path: Path, *, target: tuple[int, int] = (64, 64), crop_style: str = "center", captions: tuple[str, ...] = ("a picture",)
) -> Sample:
    """The sample that an existing image file is, scaled to cover ``target``."""
    with Image.open(path) as image:
        size = image.size
    status = path.stat()
    return Sample(
        source=LocalSource(str(path.parent)),
        name=path.name,
        size_bytes=status.st_size,
        version=status.st_mtime_ns,
        width=size[0],
        height=size[1],
        resized=scaled(size, cover_scale(size, target), target),
        target=target,
        crop=CropPlan(crop_style, target[0] / target[1]),
        bucket=f"{target[0] / target[1]:.2f} ({target[0]}x{target[1]})",
        captions=captions,
    )


def samples_of(paths: Sequence[Path], **how: object) -> list[Sample]:
    return [sample_of(path, **how) for path in paths]  # type: ignore[arg-type]


def file_of(path: Path | str) -> SourceFile:
    """A file of this machine as a source gives it; its size is 10 if there is no such file."""
    place = Path(path)
    return SourceFile(LocalSource(str(place.parent)), place.name, place.stat().st_size if place.exists() else 10)
