"""Loads masks: greyscale images that say how much each place of their partner counts."""

from __future__ import annotations

from PIL import Image, ImageChops, ImageOps

from trainer_engine.datasets.media.base import BrokenImage
from trainer_engine.datasets.media.pixels import DECODING_ERRORS, decoded, is_transparent, plain_colours
from trainer_engine.datasets.samples import Sample
from trainer_engine.datasets.sources.base import SourceFile


def load_mask(sample: Sample, left_top: tuple[int, int], *, segments: bool) -> Image.Image:
    """Returns the part of a mask that lies on the crop of its image: mode L, of size ``sample.target``.

    ``left_top``: corner of the crop in the scaled image. ``segments``: everything that is not black counts in full. Raises BrokenImage,
    also if the file has changed since it was measured.
    """
    mask = open_mask(sample.file, segments=segments)
    if mask.size != (sample.width, sample.height):
        changed = f"its size changed from {sample.width}x{sample.height} to {mask.size[0]}x{mask.size[1]}"
        raise BrokenImage(sample.location, changed)
    if mask.size != sample.resized:
        # An average of the pixels: the filter of images would overshoot beside every edge of a mask.
        mask = mask.resize(sample.resized, Image.Resampling.BOX)
    left, top = left_top
    return mask.crop((left, top, left + sample.target[0], top + sample.target[1]))


def open_mask(file: SourceFile, *, segments: bool) -> Image.Image:
    """Opens the first frame of a mask with EXIF orientation applied, as 8-bit greyscale. Raises BrokenImage.

    The numbers in the file count: no colour profile is applied. What is transparent is black.
    """
    with decoded(file) as image:
        try:
            turned = ImageOps.exif_transpose(image)
            grey = _brightest(plain_colours(turned)) if segments else plain_colours(turned).convert("L")
            if is_transparent(turned):
                grey = ImageChops.multiply(grey, turned.convert("RGBA").getchannel("A"))
            return grey.point([0] + [255] * 255) if segments else grey
        except (*DECODING_ERRORS, MemoryError) as error:
            raise BrokenImage(file.location, f"its pixels cannot be converted: {error}") from error


def _brightest(image: Image.Image) -> Image.Image:
    """The largest of the three colours of each pixel, in mode L: dark blue is not black."""
    red, green, blue = image.convert("RGB").split()
    return ImageChops.lighter(ImageChops.lighter(red, green), blue)
