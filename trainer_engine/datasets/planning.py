"""Plans the sample of a measured file: size, crop, bucket and captions, or why the file is left out."""

from __future__ import annotations

from functools import cache

from trainer_engine.config.datasets import ImageSet
from trainer_engine.datasets import geometry
from trainer_engine.datasets.buckets import bucket_key, clip_bucket
from trainer_engine.datasets.captions.base import CaptionsOf, NoCaption
from trainer_engine.datasets.crops import random_numbers
from trainer_engine.datasets.geometry import Size
from trainer_engine.datasets.index import ImageFile
from trainer_engine.datasets.samples import CropPlan, Sample
from trainer_engine.datasets.sources.base import LeftOut, Source


class Planner:
    """Applies the settings of a dataset to its files."""

    def __init__(self, entry: ImageSet, source: Source, captions: CaptionsOf, *, alignment: int, rounding: int) -> None:
        self.entry = entry
        self.source = source
        self.captions = captions
        self.rounding = rounding
        self.square = entry.crop and entry.crop_aspect == "square"
        self._choices = [choice.aspect for choice in entry.crop_aspect_buckets]
        self._weights = [choice.weight for choice in entry.crop_aspect_buckets]

        @cache
        def shape(aspect: float) -> tuple[Size, CropPlan, str]:
            target = geometry.target_size(aspect, entry.resolution, entry.resolution_type, alignment)
            return target, CropPlan(entry.crop_style, aspect), bucket_key(target, rounding)

        self._shape = shape

    def plan(self, file: ImageFile) -> Sample | LeftOut:
        """Returns the sample of a file, or why the file is left out."""
        entry, size = self.entry, (file.width, file.height)
        reason = geometry.too_small(size, entry.minimum_image_size, entry.resolution_type, square=self.square)
        target, crop, bucket = self._shape(self.aspect(file.name, size))
        reason = reason or self._out_of_range(geometry.aspect_of(target, self.rounding))
        if reason:
            return LeftOut(file.name, reason, broken=False)
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
            resized=self._resized(size, target),
            target=target,
            crop=crop,
            bucket=bucket if file.frame_rate is None else clip_bucket(bucket, file.frames),
            captions=captions,
            remark=file.remark,
            frames=file.frames,
            frame_rate=file.frame_rate,
        )

    def aspect(self, name: str, size: Size) -> float:
        """Returns width / height of the part of an image that is trained on."""
        own = geometry.aspect_of(size, self.rounding)
        if not self.entry.crop or self.entry.crop_aspect == "preserve":
            return own
        if self.entry.crop_aspect == "closest":
            return geometry.closest_aspect(own, self._choices)
        if self.entry.crop_aspect == "random":
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
