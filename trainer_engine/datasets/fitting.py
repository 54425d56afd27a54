"""Fits images into a dataset's sizes: the aspect, the target and the crop of each, and why an image is left out."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

from trainer_engine.config.datasets import ImageSet
from trainer_engine.config.datasets.object_fields import AspectChoice
from trainer_engine.datasets import geometry
from trainer_engine.datasets.buckets import bucket_key
from trainer_engine.datasets.crops import random_numbers
from trainer_engine.datasets.geometry import Size
from trainer_engine.datasets.samples import CropPlan


class Fitted(NamedTuple):
    """What becomes of images of one size."""

    reason: str
    """Why they are left out; empty if they are not."""
    target: Size
    crop: CropPlan
    bucket: str
    resized: Size


class Fitter:
    """Applies the sizes, aspects and crops of a dataset. Its results follow from the size and the name of a file alone."""

    def __init__(self, entry: ImageSet, *, alignment: int, rounding: int, canvas_px: int = 0) -> None:
        self.entry = entry
        self.rounding = rounding
        self.square = entry.crop and entry.crop_aspect == "square"
        self.is_random = entry.crop and entry.crop_aspect == "random"

        @cache
        def shape(aspect: float) -> tuple[Size, CropPlan, str]:
            target = geometry.target_size(aspect, entry.resolution, entry.resolution_type, alignment, canvas_px)
            return target, CropPlan(entry.crop_style, aspect), bucket_key(target, rounding)

        self._shape = shape
        self.choices: Callable[[Size], tuple[AspectChoice, ...]] = cache(self._possible_choices)
        """The aspects that ``crop_aspect=random`` may choose for an image of this size."""
        by_size = cache(lambda size: self.fit_aspect(size, self._fixed_aspect(size)))
        self._fit: Callable[[Size, str], Fitted] = self._fit_random if self.is_random else lambda size, name: by_size(size)

    def fit(self, size: Size, name: str) -> Fitted:
        """Returns what becomes of a file. Its name matters for random aspects alone."""
        return self._fit(size, name)

    def fit_aspect(self, size: Size, aspect: float) -> Fitted:
        """Returns what becomes of an image that is cropped to this aspect."""
        entry = self.entry
        reason = geometry.too_small(size, entry.minimum_image_size, entry.resolution_type, square=self.square)
        target, crop, bucket = self._shape(aspect)
        reason = reason or self._out_of_range(self._trained_aspect(aspect))
        return Fitted(reason, target, crop, bucket, self._resized(size, target))

    def chosen_aspect(self, size: Size, number: float) -> float:
        """Returns the choice of ``crop_aspect=random`` for a number in [0, 1), or that of a square if no choice is possible."""
        choices = self.choices(size)
        return geometry.chosen_aspect(number, [one.aspect for one in choices], [one.weight for one in choices]) if choices else 1.0

    def _fit_random(self, size: Size, name: str) -> Fitted:
        return self.fit_aspect(size, self.chosen_aspect(size, random_numbers(name, "aspect")[0]))

    def _possible_choices(self, size: Size) -> tuple[AspectChoice, ...]:
        """Returns the choices that enlarge an image no more than it may be; of a set that chooses anew, also within its limits."""
        limit, choices = self.entry.max_upscale_threshold, self.entry.crop_aspect_buckets
        if limit is not None:
            choices = tuple(one for one in choices if geometry.cover_scale(size, self._shape(one.aspect)[0]) <= 1 + limit)
        if self.entry.changes_aspects:
            choices = tuple(one for one in choices if not self._out_of_range(self._trained_aspect(one.aspect)))
        return choices

    def _trained_aspect(self, aspect: float) -> float:
        """Returns the aspect of the target, whose edges are aligned."""
        return geometry.aspect_of(self._shape(aspect)[0], self.rounding)

    def _fixed_aspect(self, size: Size) -> float:
        """Returns width / height of the part of an image that is trained on."""
        own = geometry.aspect_of(size, self.rounding)
        if not self.entry.crop or self.entry.crop_aspect == "preserve":
            return own
        return (
            geometry.closest_aspect(own, [one.aspect for one in self.entry.crop_aspect_buckets])
            if self.entry.crop_aspect == "closest"
            else 1.0
        )

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
