"""Which size an image is trained at, and which part of it. Pure functions; every size is (width, height) in pixels.

The rules, in the order in which they apply:

1. The *aspect* is width / height, rounded to ``aspect_bucket_rounding`` decimals. It is the image's own, unless cropping
   to a square, or to the nearest (or a drawn) entry of a list of aspects, is asked for.
2. The *target* is what the network sees. Its edges are multiples of the alignment:

   - ``area``: ``resolution`` megapixels, divided over both edges by the aspect. Squares use the customary edges
     512, 768, 1024, 1536 and 2048 for 0.25, 0.5, 1, 2 and 4 megapixels.
   - ``pixel_area``: ``resolution`` is the edge of a square; its area in megapixels is what ``area`` goes on with.
   - ``pixel``: the shorter edge is ``resolution``, the longer follows from the aspect.

3. The image is scaled, aspect preserved, to the *intermediary* size: just large enough to cover the target. Where it is
   cropped and larger than ``maximum_image_size``, ``target_downsample_size`` is used instead, so that the crop shows a
   detail of the picture rather than nearly all of it. Nothing is enlarged more than covering the target needs.
4. The target is cut out of the intermediary image, where ``crop_style`` says.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

Size = tuple[int, int]

SQUARE_EDGES_PX = {0.25: 512, 0.5: 768, 1.0: 1024, 2.0: 1536, 4.0: 2048}
SQUARE_TOLERANCE_MEGAPIXELS = 0.05
SMALLEST_ASPECT, LARGEST_ASPECT = 0.01, 100.0
"""Narrower and wider pictures are trained at these: what is beyond falls away at both ends."""


def round_to_multiple(pixels: float, alignment: int) -> int:
    """The nearest multiple of ``alignment``, at least one of it; halves go to the even multiple."""
    return max(alignment, round(pixels / alignment) * alignment)


def aspect_of(size: Size, rounding: int) -> float:
    """Width / height, rounded, and within the limits, however narrow or wide the image."""
    return min(max(round(size[0] / size[1], rounding), SMALLEST_ASPECT), LARGEST_ASPECT)


def is_beyond_limits(size: Size) -> bool:
    """Whether an image is narrower or wider than what is trained."""
    return not SMALLEST_ASPECT <= size[0] / size[1] <= LARGEST_ASPECT


def as_megapixels(value: float, resolution_type: str) -> float:
    """A size in the unit ``pixel_area`` or ``area`` as megapixels."""
    return value * value / 1e6 if resolution_type == "pixel_area" else value


def target_size(aspect: float, resolution: float, resolution_type: str, alignment: int) -> Size:
    """The size that images of this aspect are trained at; ``resolution`` is in the unit of ``resolution_type``."""
    if resolution_type == "pixel":
        return _short_edge_size(aspect, int(resolution), alignment)
    return _area_size(aspect, as_megapixels(resolution, resolution_type), alignment)


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
    """The edge of a square of about this area: a customary one where there is one near, else the nearest multiple.

    NOTE: at 0.5 megapixels squares have edges of 768 while other aspects are built on 704; the format has always
    been so, and images prepared for it expect it.
    """
    nearest = min(SQUARE_EDGES_PX, key=lambda customary: abs(customary - megapixels))
    if abs(nearest - megapixels) <= SQUARE_TOLERANCE_MEGAPIXELS:
        return round_to_multiple(SQUARE_EDGES_PX[nearest], alignment)
    return round_to_multiple(math.sqrt(megapixels * 1e6), alignment)


def cover_scale(size: Size, target: Size) -> float:
    """The smallest factor at which ``size`` covers ``target`` with both edges."""
    return max(target[0] / size[0], target[1] / size[1])


def scaled(size: Size, scale: float, at_least: Size) -> Size:
    """``size`` times ``scale`` in whole pixels, and no edge below ``at_least``, whatever rounding does."""
    return max(at_least[0], round(size[0] * scale)), max(at_least[1], round(size[1] * scale))


def is_larger(size: Size, limit: float, resolution_type: str) -> bool:
    """Whether an image exceeds ``maximum_image_size``: by its area, or by its shorter edge where the unit is ``pixel``."""
    if resolution_type == "pixel":
        return min(size) > limit
    return size[0] * size[1] > as_megapixels(limit, resolution_type) * 1e6


def downsample_scale(size: Size, wanted: float, resolution_type: str) -> float:
    """The factor that brings an image to ``target_downsample_size``, aspect preserved."""
    if resolution_type == "pixel":
        return wanted / min(size)
    return math.sqrt(as_megapixels(wanted, resolution_type) * 1e6 / (size[0] * size[1]))


def intermediary_size(size: Size, target: Size, *, maximum: float | None, downsample: float | None, resolution_type: str) -> Size:
    """The size that an image is scaled to before the target is cut out of it.

    ``maximum`` and ``downsample`` are ``maximum_image_size`` and ``target_downsample_size``; None or 0 for both where the
    image is not cropped, so that it only covers its target.
    """
    scale = cover_scale(size, target)
    if maximum and downsample and is_larger(size, maximum, resolution_type):
        scale = max(scale, min(1.0, downsample_scale(size, downsample, resolution_type)))
    return scaled(size, scale, target)


def too_small(size: Size, minimum: float | None, resolution_type: str, *, square: bool) -> str:
    """Why an image falls below ``minimum_image_size``, in words; empty where it does not.

    ``pixel``: no edge may be shorter. Otherwise the area may not be smaller, and where a ``square`` is cut out,
    no edge may be shorter than that of a square of this area.
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
    """The choice that distorts least: nearest by ratio, so that 1/2 is as far from 1 as 2 is."""
    return min(choices, key=lambda choice: abs(math.log(choice / aspect)))


def chosen_aspect(draw: float, choices: Sequence[float], weights: Sequence[float]) -> float:
    """The choice that a number from 0 (inclusive) to 1 falls on, each as likely as its weight."""
    position = draw * sum(weights)
    for choice, weight in zip(choices, weights, strict=True):
        position -= weight
        if position < 0:
            return choice
    return choices[-1]


def window_offset(intermediary: Size, target: Size, crop_style: str, random_numbers: tuple[float, float]) -> tuple[int, int]:
    """(left, top) of the part that is kept: at the ``corner`` (top left), in the ``center``, or where two draws from [0, 1) say."""
    spare = intermediary[0] - target[0], intermediary[1] - target[1]
    if crop_style == "corner":
        return 0, 0
    if crop_style == "center":
        return spare[0] // 2, spare[1] // 2
    return int(random_numbers[0] * (spare[0] + 1)), int(random_numbers[1] * (spare[1] + 1))
