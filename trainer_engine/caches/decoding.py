"""Decodes images in threads, ahead of the encoder."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from trainer_engine.datasets.crops import crop_window, load_frames
from trainer_engine.datasets.geometry import Size
from trainer_engine.datasets.media.base import BrokenImage, medium_of
from trainer_engine.datasets.samples import Sample

BATCHES_AHEAD = 3
FRAMES_AHEAD = 256
"""Frames of clips that may be decoded before they are encoded; one clip is always decoded ahead."""


@dataclass
class DecodedBatch:
    """Samples of one size with their pixels, and those that could not be decoded, with the reason.

    Pixels are in [-1, 1]: (B, 3, H, W) for images, (B, 3, T, H, W) for clips.
    """

    samples: list[Sample] = field(default_factory=list)
    pixels: Tensor = field(default_factory=lambda: torch.empty(0))
    broken: list[tuple[Sample, str]] = field(default_factory=list)
    skipped: list[Sample] = field(default_factory=list)
    """Samples that were not decoded, because somebody else has encoded them meanwhile."""

    @property
    def count(self) -> int:
        return len(self.samples) + len(self.broken) + len(self.skipped)


def pixels_of(image: Image.Image) -> Tensor:
    """RGB image -> (3, H, W) float32 in [-1, 1]."""
    values = torch.from_numpy(np.array(image.convert("RGB"), dtype=np.uint8))
    return values.permute(2, 0, 1).float().div_(127.5).sub_(1.0)


def sample_pixels(sample: Sample, seed: int) -> Tensor:
    """The resized and cropped image, (3, H, W) in [-1, 1], or clip, (3, T, H, W). ``seed`` places random crops. Raises BrokenImage."""
    frames = (pixels_of(frame) for frame in load_frames(sample, crop_window(sample, seed)))
    if not sample.is_clip:
        [image] = frames
        return image
    width, height = sample.target
    clip = torch.empty(3, sample.frames, height, width)  # filled frame by frame, so that a clip is never there twice
    for number, frame in enumerate(frames):
        clip[:, number] = frame
    return clip


class Cut(NamedTuple):
    """What ``sample_pixels`` depends on beside the content of the file. Many samples have the same."""

    frames: int | None
    """None for an image."""
    pixels: int | str
    """Version of the pixels that a file of this kind gives."""
    resized: Size
    target: Size
    window: tuple[int, int]

    def made_from(self) -> dict[str, Any]:
        """The same as parts of a cache address."""
        frames = {} if self.frames is None else {"frames": self.frames}
        return {**frames, "pixels": self.pixels, **{name: list(getattr(self, name)) for name in ("resized", "target", "window")}}


def cut_of(sample: Sample, seed: int) -> Cut:
    """``seed`` places random crops."""
    is_clip = sample.is_clip
    rule = medium_of(sample.name, is_clip=is_clip).pixel_rule
    return Cut(sample.frames if is_clip else None, rule, sample.resized, sample.target, crop_window(sample, seed))


def pixels_made_from(sample: Sample, content: str, seed: int) -> dict[str, Any]:
    """What ``sample_pixels`` depends on, as parts of a cache address; ``content`` is the sha256 of the sample's file."""
    return {**cut_of(sample, seed).made_from(), "image": content}


def batches_by_size(samples: Sequence[Sample], batch_size: int) -> list[list[Sample]]:
    """Batches of samples whose pixels have the same shape, in the order in which the shapes first appear."""
    groups: dict[tuple[object, ...], list[Sample]] = defaultdict(list)
    for sample in samples:
        groups[sample.target, sample.frames, sample.is_clip].append(sample)
    return [group[start : start + batch_size] for group in groups.values() for start in range(0, len(group), batch_size)]


def decoded_batches(
    batches: Iterable[list[Sample]], *, seed: int, workers: int, is_done: Callable[[Sample], bool] = lambda sample: False
) -> Iterator[DecodedBatch]:
    """Decode every sample once, except those that ``is_done``. Only a few batches are decoded ahead, which bounds the memory."""

    def decode(sample: Sample) -> Tensor | None:
        return None if is_done(sample) else sample_pixels(sample, seed)

    waiting: deque[list[tuple[Sample, Future[Tensor | None]]]] = deque()
    left = iter(batches)
    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    try:
        for batch in left:
            waiting.append([(sample, pool.submit(decode, sample)) for sample in batch])
            while len(waiting) > _most_ahead(batch, workers):
                yield _collected(waiting.popleft())
        while waiting:
            yield _collected(waiting.popleft())
    finally:
        pool.shutdown(cancel_futures=True)


def _most_ahead(batch: Sequence[Sample], workers: int) -> int:
    """Number of batches like this one that are decoded while one is encoded."""
    usual = BATCHES_AHEAD + -(-workers // len(batch))
    frames = sum(sample.frames for sample in batch if sample.is_clip)
    return min(usual, max(1, FRAMES_AHEAD // frames)) if frames else usual


def _collected(decoding: list[tuple[Sample, Future[Tensor | None]]]) -> DecodedBatch:
    batch, found = DecodedBatch(), []
    for sample, future in decoding:
        try:
            pixels = future.result()
        except BrokenImage as error:
            batch.broken.append((sample, error.reason))
            continue
        if pixels is None:
            batch.skipped.append(sample)
        else:
            found.append(pixels)
            batch.samples.append(sample)
    if found:
        batch.pixels = torch.stack(found)
    return batch
