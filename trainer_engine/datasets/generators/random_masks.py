"""Random masks of the size of an image, and the image with a random mask cut out of it, for training of inpainting."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from trainer_engine.config.option import OptionGroup, option
from trainer_engine.datasets.generators.base import Generator, Wrong, words_in

if TYPE_CHECKING:
    from PIL import Image

MOST_TRIES = 60
"""Shapes that are added until the coverage is reached. Each covers at most what is missing, or is small."""


class MaskFields(OptionGroup):
    """Fields of the generator of random masks."""

    mask_types: str = option("rectangle,circle,brush,irregular", "Shapes to choose from, as a list: rectangle, circle, brush, irregular.")
    min_coverage: float = option(0.1, "Least share of the image that is covered.", ge=0, le=1)
    max_coverage: float = option(0.5, "Share of the image above which no shape is added.", gt=0, le=1)
    min_masks: int = option(1, "Least number of shapes.", ge=1, le=100)
    max_masks: int = option(5, "Largest number of shapes, as long as min_coverage is reached with them.", ge=1, le=100)
    output_mode: Literal["mask", "masked_image"] = option(
        "mask", "mask: the shapes in mask_value on black. masked_image: the image with its masked part in mask_value."
    )
    mask_value: int = option(255, "Brightness of the masked part, from 0 for black to 255 for white.", ge=0, le=255)
    edge_blur: bool = option(True, "Blur the edges of the shapes.")
    edge_blur_radius: float = option(2.0, "Radius of that blur in pixels.", ge=0, le=100)
    seed: int = option(0, "Seed of the shapes.", ge=0)


class InpaintingFields(MaskFields):
    """The same for images with a masked part."""

    output_mode: Literal["mask", "masked_image"] = option(
        "masked_image", "mask: the shapes in mask_value on black. masked_image: the image with its masked part in mask_value."
    )


def contradictions(fields: MaskFields) -> Iterator[Wrong]:
    unknown = [word for word in words_in(fields.mask_types) if word not in SHAPES]
    if unknown or not words_in(fields.mask_types):
        yield Wrong("mask_types", f"names no shape: {', '.join(unknown)}" if unknown else "is empty", ", ".join(SHAPES))
    for low, high in (("min_coverage", "max_coverage"), ("min_masks", "max_masks")):
        least, most = getattr(fields, low), getattr(fields, high)
        if least > most:
            yield Wrong(low, f"is above {high}={most:g}", f"at most {most:g}")


def make(image: Image.Image, fields: MaskFields, seed: int) -> Image.Image:
    from PIL import Image, ImageFilter

    mask = random_mask(image.size, fields, random.Random(seed))
    if fields.edge_blur:
        mask = mask.filter(ImageFilter.GaussianBlur(fields.edge_blur_radius))
    masked = Image.new("RGB", image.size, (fields.mask_value,) * 3)
    return Image.composite(masked, image if fields.output_mode == "masked_image" else Image.new("RGB", image.size), mask)


def random_mask(size: tuple[int, int], fields: MaskFields, dice: random.Random) -> Image.Image:
    """Mode L: 255 in the shapes, 0 elsewhere."""
    from PIL import Image, ImageDraw

    mask, kinds = Image.new("L", size), words_in(fields.mask_types)
    wanted, shapes = dice.randint(fields.min_masks, fields.max_masks), 0
    for _ in range(MOST_TRIES):
        covered = _coverage(mask)
        if covered >= fields.min_coverage and shapes >= wanted:
            break
        tried = mask.copy()
        missing = max(fields.min_coverage - covered, 0.02) * size[0] * size[1]
        SHAPES[dice.choice(kinds)](ImageDraw.Draw(tried), size, missing, dice)
        if _coverage(tried) <= fields.max_coverage:
            mask, shapes = tried, shapes + 1
    return mask


def _coverage(mask: Image.Image) -> float:
    return mask.histogram()[255] / (mask.width * mask.height)


Shape = Callable[[Any, tuple[int, int], float, random.Random], None]
"""(canvas, size of the image, area in pixels of about this much, random numbers)"""


def _rectangle(canvas: Any, size: tuple[int, int], area: float, dice: random.Random) -> None:
    aspect = dice.uniform(0.5, 2)
    width, height = (min(edge, math.sqrt(area * factor)) for edge, factor in zip(size, (aspect, 1 / aspect), strict=True))
    left, top = dice.uniform(0, size[0] - width), dice.uniform(0, size[1] - height)
    canvas.rectangle((left, top, left + width, top + height), fill=255)


def _circle(canvas: Any, size: tuple[int, int], area: float, dice: random.Random) -> None:
    radius = min(*size, 2 * math.sqrt(area / math.pi)) / 2
    x, y = dice.uniform(radius, size[0] - radius), dice.uniform(radius, size[1] - radius)
    canvas.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)


def _brush(canvas: Any, size: tuple[int, int], area: float, dice: random.Random) -> None:
    width = max(1, round(math.sqrt(area) / dice.uniform(2, 4)))
    points = [(dice.uniform(0, size[0]), dice.uniform(0, size[1]))]
    length = area / width / 4
    for _ in range(4):
        angle = dice.uniform(0, 2 * math.pi)
        points.append((points[-1][0] + length * math.cos(angle), points[-1][1] + length * math.sin(angle)))
    canvas.line(points, fill=255, width=width, joint="curve")


def _irregular(canvas: Any, size: tuple[int, int], area: float, dice: random.Random) -> None:
    radius = math.sqrt(area / math.pi)
    x, y = dice.uniform(0, size[0]), dice.uniform(0, size[1])
    corners = [(2 * math.pi * number / 12, radius * dice.uniform(0.5, 1.5)) for number in range(12)]
    canvas.polygon([(x + far * math.cos(angle), y + far * math.sin(angle)) for angle, far in corners], fill=255)


SHAPES: Mapping[str, Shape] = MappingProxyType({"rectangle": _rectangle, "circle": _circle, "brush": _brush, "irregular": _irregular})

GENERATORS = (
    Generator(
        name="random_masks",
        help="a random mask of the size of the image.",
        synonyms=("masks",),
        fields=MaskFields,
        make=make,
        contradictions=contradictions,
    ),
    Generator(
        name="inpainting",
        help="the image with a random part of it masked.",
        fields=InpaintingFields,
        make=make,
        contradictions=contradictions,
    ),
)
