"""Copies of an image with the artifacts of strong JPEG compression, for training that removes them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from trainer_engine.config.option import OptionGroup, option
from trainer_engine.datasets.generators.base import Generator, Wrong, numbers_in, qualities
from trainer_engine.datasets.generators.superresolution import compressed

if TYPE_CHECKING:
    from PIL import Image


class JpegFields(OptionGroup):
    """Fields of the generator of compressed copies."""

    quality_mode: Literal["fixed", "random", "range"] = option(
        "fixed", "Quality of each image. fixed: quality. random: one of quality_list. range: any within quality_range."
    )
    quality: int = option(25, "JPEG quality with quality_mode=fixed.", ge=1, le=100)
    quality_range: str = option("10,50", "Lowest and highest quality with quality_mode=range, as a list of two numbers.")
    quality_list: str = option("10,20,30,40", "Qualities that quality_mode=random chooses from, as a list of numbers.")
    compression_rounds: int = option(1, "Number of times that the image is compressed.", ge=1, le=20)
    round_quality_decay: float = option(0.9, "Factor of the quality after each round.", gt=0, le=1)
    enhance_blocks: bool = option(False, "Sharpen the result, so that the borders of its blocks are visible.")
    seed: int = option(0, "Seed of the random qualities.", ge=0)


def contradictions(fields: JpegFields) -> Iterator[Wrong]:
    yield from qualities("quality_range", fields.quality_range, 2)
    yield from qualities("quality_list", fields.quality_list)


def make(image: Image.Image, fields: JpegFields, seed: int) -> Image.Image:
    from PIL import ImageFilter

    quality = float(_quality(fields, random.Random(seed)))
    for _ in range(fields.compression_rounds):
        image = compressed(image, max(1, round(quality)))
        quality *= fields.round_quality_decay
    # The borders between blocks of 8x8 pixels are steps of one pixel.
    return image.filter(ImageFilter.UnsharpMask(radius=1, percent=120, threshold=2)) if fields.enhance_blocks else image


def _quality(fields: JpegFields, dice: random.Random) -> int:
    if fields.quality_mode == "random":
        return int(dice.choice(numbers_in(fields.quality_list)))
    if fields.quality_mode == "range":
        low, high = numbers_in(fields.quality_range)
        return dice.randint(int(low), int(high))
    return fields.quality


GENERATORS = (
    Generator(
        name="jpeg_artifacts",
        help="a copy of the image that is compressed as JPEG.",
        synonyms=("jpeg", "compression"),
        fields=JpegFields,
        make=make,
        contradictions=contradictions,
    ),
)
