"""Places the crop of a sample, and loads the pixels in it."""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Iterator
from itertools import islice

from PIL import Image

from trainer_engine.datasets import geometry
from trainer_engine.datasets.media.base import BrokenImage, medium_of
from trainer_engine.datasets.samples import Sample


def load_frames(sample: Sample, left_top: tuple[int, int]) -> Iterator[Image.Image]:
    """Yields the crop that is trained on, frame by frame: RGB of size ``sample.target``, at ``left_top`` of the scaled frame.

    An image has one frame. Of a longer clip only the first ``sample.frames`` are decoded. Raises BrokenImage, also if the file has changed
    since it was measured.
    """
    count = 0
    for frame in islice(medium_of(sample.name, is_clip=sample.is_clip).frames(sample.file), sample.frames):
        if frame.size != (sample.width, sample.height):
            changed = f"its size changed from {sample.width}x{sample.height} to {frame.size[0]}x{frame.size[1]}"
            raise BrokenImage(sample.location, changed)
        count += 1
        yield _cropped(frame, sample, left_top)
    if count != sample.frames:
        raise BrokenImage(sample.location, f"only {count} frames can be decoded, and {sample.frames} are needed")


def _cropped(frame: Image.Image, sample: Sample, left_top: tuple[int, int]) -> Image.Image:
    if frame.size != sample.resized:
        frame = frame.resize(sample.resized, Image.Resampling.LANCZOS)
    left, top = left_top
    return frame.crop((left, top, left + sample.target[0], top + sample.target[1]))


def crop_window(sample: Sample, seed: int) -> tuple[int, int]:
    """Returns (left, top) of a sample's crop. A random one depends only on the seed, the file's name in its dataset and the epoch."""
    if sample.resized == sample.target:
        return 0, 0
    purpose = f"window {seed} epoch {sample.epoch}" if sample.epoch else f"window {seed}"
    return geometry.window_offset(
        sample.resized, sample.target, sample.crop.style, random_numbers(sample.random_name or sample.name, purpose)
    )


def random_numbers(name: str, purpose: str) -> tuple[float, float]:
    """Returns two numbers in [0, 1) that depend only on a file's name and their purpose, the same on every machine."""
    digest = hashlib.blake2b(os.fsencode(name), person=hashlib.blake2b(purpose.encode(), digest_size=16).digest(), digest_size=16).digest()
    first, second = struct.unpack("<QQ", digest)
    return (first >> 11) / 2**53, (second >> 11) / 2**53
