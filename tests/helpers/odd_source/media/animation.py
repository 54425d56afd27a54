"""Animations as clips of frames."""

from __future__ import annotations

from collections.abc import Iterator

from PIL import Image, ImageSequence

from trainer_engine.datasets.media.base import BrokenImage, MediaFacts, Medium
from trainer_engine.datasets.media.pixels import DECODING_ERRORS, as_rgb, opened, refuse_bombs
from trainer_engine.datasets.sources.base import SourceFile

MOST_FRAMES = 1000


def _measure(file: SourceFile) -> MediaFacts:
    with opened(file) as image:
        refuse_bombs(file, image.size)
        try:
            frames, milliseconds = getattr(image, "n_frames", 1), image.info.get("duration", 100)
        except DECODING_ERRORS as error:
            raise BrokenImage(file.location, f"its frames cannot be counted: {error}") from error
    if frames > MOST_FRAMES:
        raise BrokenImage(file.location, f"it has {frames} frames; at most {MOST_FRAMES} are opened")
    return MediaFacts(image.size, frames=frames, frame_rate=1000 / max(milliseconds, 10))


def _frames(file: SourceFile) -> Iterator[Image.Image]:
    with opened(file) as image:
        refuse_bombs(file, image.size)
        try:
            for frame in ImageSequence.Iterator(image):
                yield as_rgb(frame)
        except DECODING_ERRORS as error:
            raise BrokenImage(file.location, f"its frames cannot be decoded: {error}") from error


MEDIUM = Medium(name="animation", suffixes=frozenset({".anim"}), is_clip=True, pixel_rule="animation 1", measure=_measure, frames=_frames)
