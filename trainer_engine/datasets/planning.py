"""Plans the sample of a measured file: size, crop, bucket and captions, or why the file is left out."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

from trainer_engine.config.datasets import ImageSet
from trainer_engine.datasets import geometry
from trainer_engine.datasets.buckets import bucket_key, clip_bucket
from trainer_engine.datasets.captions.base import CaptionsOf, NoCaption
from trainer_engine.datasets.crops import random_numbers
from trainer_engine.datasets.geometry import Size
from trainer_engine.datasets.index import ImageFile
from trainer_engine.datasets.samples import CropPlan, Sample
from trainer_engine.datasets.sources.base import LeftOut, Source
from trainer_engine.datasets.texts import RememberedTexts


class Fitted(NamedTuple):
    """What becomes of images of one size."""

    reason: str
    """Why they are left out; empty if they are not."""
    target: Size
    crop: CropPlan
    bucket: str
    resized: Size


class Planner:
    """Applies the settings of a dataset to its files."""

    def __init__(
        self,
        entry: ImageSet,
        source: Source,
        captions: CaptionsOf,
        *,
        alignment: int,
        rounding: int,
        texts: RememberedTexts | None = None,
        frame_stride: int = 1,
    ) -> None:
        """``texts``: where ``captions`` are read, if they are remembered.

        ``frame_stride``: clips have one frame and a multiple of these.
        """
        self._frame_stride = frame_stride
        self.entry = entry
        self.source = source
        self.captions = captions
        self._texts = texts
        self.rounding = rounding
        self.square = entry.crop and entry.crop_aspect == "square"
        self._is_random = entry.crop and entry.crop_aspect == "random"
        self._choices = [choice.aspect for choice in entry.crop_aspect_buckets]
        self._weights = [choice.weight for choice in entry.crop_aspect_buckets]

        @cache
        def shape(aspect: float) -> tuple[Size, CropPlan, str]:
            target = geometry.target_size(aspect, entry.resolution, entry.resolution_type, alignment)
            return target, CropPlan(entry.crop_style, aspect), bucket_key(target, rounding)

        self._shape = shape
        by_size = cache(lambda size: self._fitted(size, ""))  # the name matters for random aspects alone
        self._fit: Callable[[Size, str], Fitted] = self._fitted if self._is_random else lambda size, name: by_size(size)

    def plan(self, file: ImageFile) -> Sample | LeftOut:
        """Returns the sample of a file, or why the file is left out."""
        reason, target, crop, bucket, resized = self._fit((file.width, file.height), file.name)
        reason = reason or self._wrong_length(file)
        if reason:
            return LeftOut(file.name, reason, broken=False)
        frames = self._frames(file)
        try:
            captions = self.captions(file.name)
        except NoCaption as missing:
            return LeftOut(file.name, str(missing), broken=True)
        return Sample(
            source=self.source,
            name=file.name,
            size_bytes=file.size_bytes,
            version=file.version,
            width=file.width,
            height=file.height,
            resized=resized,
            target=target,
            crop=crop,
            bucket=bucket if file.frame_rate is None else clip_bucket(bucket, frames),
            captions=captions,
            remark=file.remark,
            frames=frames,
            frame_rate=file.frame_rate,
        )

    def _wrong_length(self, file: ImageFile) -> str:
        """Returns why a clip is too short or too long; empty if it is not, and for an image."""
        clips = self.entry.video
        if clips is None or file.frame_rate is None:
            return ""
        if clips.min_frames and file.frames < clips.min_frames:
            return f"it has {file.frames} frames; min_frames={clips.min_frames}"
        if clips.max_frames and file.frames > clips.max_frames:
            return f"it has {file.frames} frames; max_frames={clips.max_frames}"
        return ""

    def _frames(self, file: ImageFile) -> int:
        """Returns how many frames are trained on, from the first one on."""
        clips = self.entry.video
        return file.frames if clips is None or file.frame_rate is None else clips.trained_frames(file.frames, self._frame_stride)

    def _fitted(self, size: Size, name: str) -> Fitted:
        entry = self.entry
        reason = geometry.too_small(size, entry.minimum_image_size, entry.resolution_type, square=self.square)
        target, crop, bucket = self._shape(self.aspect(name, size))
        reason = reason or self._out_of_range(geometry.aspect_of(target, self.rounding))
        return Fitted(reason, target, crop, bucket, self._resized(size, target))

    def save_texts(self) -> None:
        """Remembers the captions that were read."""
        if self._texts:
            self._texts.save()

    def aspect(self, name: str, size: Size) -> float:
        """Returns width / height of the part of an image that is trained on."""
        own = geometry.aspect_of(size, self.rounding)
        if not self.entry.crop or self.entry.crop_aspect == "preserve":
            return own
        if self.entry.crop_aspect == "closest":
            return geometry.closest_aspect(own, self._choices)
        if self._is_random:
            return self._random_aspect(name, size)
        return 1.0

    def _random_aspect(self, name: str, size: Size) -> float:
        """Returns one of the choices that enlarge the image no more than it may be, or that of a square if there is none."""
        choices, limit = list(zip(self._choices, self._weights, strict=True)), self.entry.max_upscale_threshold
        if limit is not None:
            choices = [one for one in choices if geometry.cover_scale(size, self._shape(one[0])[0]) <= 1 + limit]
        if not choices:
            return 1.0
        return geometry.chosen_aspect(random_numbers(name, "aspect")[0], *zip(*choices, strict=True))

    def _resized(self, size: Size, target: Size) -> Size:
        entry = self.entry
        maximum, downsample = (entry.maximum_image_size, entry.target_downsample_size) if entry.crop else (None, None)
        return geometry.intermediary_size(size, target, maximum=maximum, downsample=downsample, resolution_type=entry.resolution_type)

    def _out_of_range(self, aspect: float) -> str:
        low, high = self.entry.minimum_aspect_ratio, self.entry.maximum_aspect_ratio
        if low and aspect < low:
            return f"its aspect {aspect:g} is below minimum_aspect_ratio={low:g}"
        if high and aspect > high:
            return f"its aspect {aspect:g} is above maximum_aspect_ratio={high:g}"
        return ""
