"""Clips: video files through PyAV, and animated GIF and WebP files through Pillow. Their frames are 8-bit sRGB.

Frames are taken as they are stored, one after the other, whatever their times: a clip of a variable rate has its average rate.
"""

from __future__ import annotations

from collections.abc import Iterator

from PIL import Image, ImageSequence

from trainer_engine.datasets.media import containers
from trainer_engine.datasets.media.base import BrokenImage, MediaFacts, Medium
from trainer_engine.datasets.media.pixels import DECODING_ERRORS, as_rgb, opened, profile_of, refuse_bombs
from trainer_engine.datasets.sources.base import SourceFile

ANIMATIONS = frozenset((".gif", ".webp"))
UNSUPPORTED = frozenset((".wmv", ".flv", ".mpg", ".mpeg", ".m2ts", ".mts", ".ogv", ".3gp"))
LARGEST_ANIMATION = 1 << 30
"""Bytes of an animation that is opened: Pillow holds a WebP file in memory."""
SHORTEST_MS = 10
"""Shortest time of a frame in an animation; a GIF counts hundredths of a second."""
USUAL_MS = 100
PIXEL_RULE = "clip 1"


def _is_animation(file: SourceFile) -> bool:
    return file.name[file.name.rfind(".") :].lower() in ANIMATIONS


def measure_clip(file: SourceFile) -> MediaFacts:
    """Reads size, frames and rate from the header. Raises BrokenImage."""
    return _measure_animation(file) if _is_animation(file) else containers.measure_video(file)


def frames_of(file: SourceFile) -> Iterator[Image.Image]:
    """Decodes the frames one by one. Raises BrokenImage."""
    return _decode_animation(file) if _is_animation(file) else containers.decode_video(file)


def _measure_animation(file: SourceFile) -> MediaFacts:
    if file.size_bytes > LARGEST_ANIMATION:
        raise BrokenImage(file.location, f"it has {file.size_bytes >> 20} MiB; animations of at most {LARGEST_ANIMATION >> 20} are opened")
    with opened(file) as image:
        refuse_bombs(file, image.size)
        try:
            frames = int(getattr(image, "n_frames", 1))
            image.seek(0)
            image.load()  # a WebP file names the time of a frame once it is decoded
            milliseconds = float(image.info.get("duration") or USUAL_MS)
        except (*DECODING_ERRORS, MemoryError) as error:
            raise BrokenImage(file.location, f"its frames cannot be counted: {error}") from error
    if frames > containers.MOST_FRAMES:
        raise BrokenImage(file.location, f"it has {frames} frames; at most {containers.MOST_FRAMES} are opened")
    return MediaFacts(image.size, frames=frames, frame_rate=1000 / max(milliseconds, SHORTEST_MS))


def _decode_animation(file: SourceFile) -> Iterator[Image.Image]:
    with opened(file) as image:
        refuse_bombs(file, image.size)
        try:
            for frame in ImageSequence.Iterator(image):
                yield as_rgb(frame, profile_of(image))
        except (*DECODING_ERRORS, MemoryError) as error:
            raise BrokenImage(file.location, f"its frames cannot be decoded: {error}") from error


MEDIUM = Medium(
    name="clip",
    suffixes=containers.SUFFIXES | ANIMATIONS,
    unsupported=UNSUPPORTED,
    missing=containers.missing_suffixes,
    is_clip=True,
    pixel_rule=PIXEL_RULE,
    measure=measure_clip,
    frames=frames_of,
)
