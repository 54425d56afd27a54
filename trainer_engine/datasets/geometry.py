"""Computes the training size and the crop of an image. Pure functions; every size is (width, height) in pixels.

The rules apply in this order:

1. The *aspect* is width / height, rounded to ``aspect_bucket_rounding`` decimals. It is that of the image, unless the image is cropped to
   a square, or to the nearest or a random entry of a list of aspects.
2. The *target* is the size that the network sees. Its edges are multiples of the alignment:

   - ``area``: ``resolution`` megapixels, stretched to the aspect. Squares have the customary edges 512, 768, 1024, 1536 and 2048 for 0.25,
     0.5, 1, 2 and 4 megapixels.
   - ``pixel_area``: ``resolution`` is the edge of a square, whose area in megapixels is used as for ``area``.
   - ``pixel``: the shorter edge is ``resolution``, and the longer one follows from the aspect.

3. The image is scaled with its aspect to the *intermediary* size, which just covers the target. A cropped image larger than
   ``maximum_image_size`` is scaled to ``target_downsample_size`` instead, so that the crop shows a detail rather than nearly everything.
   No image is enlarged more than is needed to cover the target.
4. The target is cropped out of the intermediary image at the position that ``crop_style`` selects.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

Size = tuple[int, int]

SQUARE_EDGES_PX = {0.25: 512, 0.5: 768, 1.0: 1024, 2.0: 1536, 4.0: 2048}
SQUARE_TOLERANCE_MEGAPIXELS = 0.05
SMALLEST_ASPECT, LARGEST_ASPECT = 0.01, 100.0
"""Narrower and wider images are trained at these limits, and lose both ends."""


def round_to_multiple(pixels: float, alignment: int) -> int:
    """Rounds to the nearest multiple of ``alignment``, at least ``alignment``; halves round to the even multiple."""
    return max(alignment, round(pixels / alignment) * alignment)


def aspect_of(size: Size, rounding: int) -> float:
    """Returns width / height, rounded and limited to ``SMALLEST_ASPECT`` and ``LARGEST_ASPECT``."""
    return min(max(round(size[0] / size[1], rounding), SMALLEST_ASPECT), LARGEST_ASPECT)


def is_beyond_limits(size: Size) -> bool:
    """Whether an image is narrower or wider than the limits."""
    return not SMALLEST_ASPECT <= size[0] / size[1] <= LARGEST_ASPECT


def as_megapixels(value: float, resolution_type: str) -> float:
    """Converts a size in the unit ``pixel_area`` or ``area`` to megapixels."""
    return value * value / 1e6 if resolution_type == "pixel_area" else value


def target_size(aspect: float, resolution: float, resolution_type: str, alignment: int, canvas_px: int = 0) -> Size:
    """Returns the training size of images with this aspect. ``resolution`` is in the unit of ``resolution_type``.

    ``canvas_px``: the longer edge is shortened until the area has no more pixels; 0 allows any number.
    """
    if resolution_type == "pixel":
        return within(_short_edge_size(aspect, int(resolution), alignment), alignment, canvas_px)
    return within(_area_size(aspect, as_megapixels(resolution, resolution_type), alignment), alignment, canvas_px)


def within(size: Size, alignment: int, canvas_px: int) -> Size:
    """Returns the size with the longer edge shortened by the ``alignment`` until it has ``canvas_px`` pixels or fewer; 0 for any number."""
    width, height = size
    while canvas_px and width * height > canvas_px and max(width, height) > alignment:
        width, height = (width - alignment, height) if width >= height else (width, height - alignment)
    return width, height


def _short_edge_size(aspect: float, edge: int, alignment: int) -> Size:
    width, height = (edge, int(edge / aspect)) if aspect < 1 else (int(edge * aspect), edge)
    return round_to_multiple(width, alignment), round_to_multiple(height, alignment)


def _area_size(aspect: float, megapixels: float, alignment: int) -> Size:
    if aspect == 1.0:
        edge = square_edge(megapixels, alignment)
        return edge, edge
    edge = round_to_multiple(int(math.sqrt(megapixels * 1e6)), alignment)
    stretch = math.sqrt(aspect)
    return round_to_multiple(edge * stretch, alignment), round_to_multiple(edge / stretch, alignment)


def square_edge(megapixels: float, alignment: int) -> int:
    """Returns the edge of a square of about this area: a customary edge if one is near, else the nearest multiple.

    NOTE: at 0.5 megapixels squares have edges of 768, while other aspects are derived from 704. The format has always been like this, and
    images prepared for it rely on it.
    """
    nearest = min(SQUARE_EDGES_PX, key=lambda customary: abs(customary - megapixels))
    if abs(nearest - megapixels) <= SQUARE_TOLERANCE_MEGAPIXELS:
        return round_to_multiple(SQUARE_EDGES_PX[nearest], alignment)
    return round_to_multiple(math.sqrt(megapixels * 1e6), alignment)


def cover_scale(size: Size, target: Size) -> float:
    """Returns the smallest factor at which ``size`` covers ``target`` with both edges."""
    return max(target[0] / size[0], target[1] / size[1])


def scaled(size: Size, scale: float, at_least: Size) -> Size:
    """Returns ``size`` times ``scale``, rounded to pixels, with no edge below that of ``at_least``."""
    return max(at_least[0], round(size[0] * scale)), max(at_least[1], round(size[1] * scale))


def is_larger(size: Size, limit: float, resolution_type: str) -> bool:
    """Whether an image exceeds ``maximum_image_size``: in area, or in its shorter edge if the unit is ``pixel``."""
    if resolution_type == "pixel":
        return min(size) > limit
    return size[0] * size[1] > as_megapixels(limit, resolution_type) * 1e6


def downsample_scale(size: Size, wanted: float, resolution_type: str) -> float:
    """Returns the factor that scales an image to ``target_downsample_size``."""
    if resolution_type == "pixel":
        return wanted / min(size)
    return math.sqrt(as_megapixels(wanted, resolution_type) * 1e6 / (size[0] * size[1]))


def intermediary_size(size: Size, target: Size, *, maximum: float | None, downsample: float | None, resolution_type: str) -> Size:
    """Returns the size that an image is scaled to before the target is cropped out of it.

    ``maximum`` and ``downsample`` are ``maximum_image_size`` and ``target_downsample_size``. Both are None or 0 if the image is not
    cropped; it then just covers its target.
    """
    scale = cover_scale(size, target)
    if maximum and downsample and is_larger(size, maximum, resolution_type):
        scale = max(scale, min(1.0, downsample_scale(size, downsample, resolution_type)))
    return scaled(size, scale, target)


def too_small(size: Size, minimum: float | None, resolution_type: str, *, square: bool) -> str:
    """Returns why an image is smaller than ``minimum_image_size``, or an empty string if it is not.

    With ``pixel`` no edge may be shorter. Otherwise the area may not be smaller, and if a ``square`` is cropped, no edge may be shorter
    than that of a square of this area.
    """
    width, height = size
    if not minimum:
        return ""
    if resolution_type == "pixel":
        return f"{width}x{height} is below minimum_image_size={minimum:g} pixels" if min(size) < minimum else ""
    megapixels = as_megapixels(minimum, resolution_type)
    if width * height < megapixels * 1e6:
        return f"{width}x{height} is {width * height / 1e6:.3g} megapixels, below minimum_image_size ({megapixels:g} megapixels)"
    edge = math.floor(math.sqrt(megapixels * 1e6))
    if square and min(size) < edge:
        return f"{width}x{height} has an edge below {edge} pixels, too short for a square of minimum_image_size ({megapixels:g} megapixels)"
    return ""


def closest_aspect(aspect: float, choices: Sequence[float]) -> float:
    """Returns the nearest choice by ratio: 1/2 is as far from 1 as 2 is."""
    return min(choices, key=lambda choice: abs(math.log(choice / aspect)))


def chosen_aspect(random_number: float, choices: Sequence[float], weights: Sequence[float]) -> float:
    """Returns the choice for a random number in [0, 1). The probability of each is proportional to its weight."""
    position = random_number * sum(weights)
    for choice, weight in zip(choices, weights, strict=True):
        position -= weight
        if position < 0:
            return choice
    return choices[-1]


def window_offset(intermediary: Size, target: Size, crop_style: str, random_numbers: tuple[float, float]) -> tuple[int, int]:
    """Returns (left, top) of the crop: at the ``corner`` (top left), in the ``center``, or given by two random numbers in [0, 1)."""
    spare = intermediary[0] - target[0], intermediary[1] - target[1]
    if crop_style == "corner":
        return 0, 0
    if crop_style == "center":
        return spare[0] // 2, spare[1] // 2
    return int(random_numbers[0] * (spare[0] + 1)), int(random_numbers[1] * (spare[1] + 1))
