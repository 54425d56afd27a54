"""Worse copies of an image for training of upscalers: small, blurred, noisy, compressed. Their size stays that of the image."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Literal

from trainer_engine.config.option import OptionGroup, option
from trainer_engine.datasets.generators.base import Generator

if TYPE_CHECKING:
    from PIL import Image


class SuperresolutionFields(OptionGroup):
    """Fields of the generator of worse copies."""

    blur_radius: float = option(2.0, "Radius of the blur in pixels. 0: none.", ge=0, le=100)
    blur_type: Literal["gaussian", "box", "both"] = option(
        "gaussian", "Kind of the blur. both: box after gaussian, each of half the radius."
    )
    add_noise: bool = option(True, "Add Gaussian noise.")
    noise_level: float = option(0.02, "Standard deviation of the noise, as a share of the brightness from black to white.", ge=0, le=1)
    jpeg_quality: int | None = option(None, "Compress the result as JPEG of this quality. Empty: not at all.", ge=1, le=100)
    downscale_factor: float | None = option(
        None, "Scale the image down by this factor and up again before it is blurred. Empty: not at all.", ge=1, le=64
    )
    seed: int = option(0, "Seed of the noise.", ge=0)


def make(image: Image.Image, fields: SuperresolutionFields, seed: int) -> Image.Image:
    """Scales, blurs, adds noise and compresses, in this order."""
    from PIL import Image

    if fields.downscale_factor:
        small = [max(1, round(edge / fields.downscale_factor)) for edge in image.size]
        image = image.resize((small[0], small[1]), Image.Resampling.BICUBIC).resize(image.size, Image.Resampling.BICUBIC)
    image = _blurred(image, fields)
    if fields.add_noise and fields.noise_level:
        image = noisy(image, fields.noise_level, seed)
    return compressed(image, fields.jpeg_quality) if fields.jpeg_quality else image


def _blurred(image: Image.Image, fields: SuperresolutionFields) -> Image.Image:
    from PIL import ImageFilter

    radius = fields.blur_radius / (2 if fields.blur_type == "both" else 1)
    if fields.blur_type in ("gaussian", "both"):
        image = image.filter(ImageFilter.GaussianBlur(radius))
    return image.filter(ImageFilter.BoxBlur(radius)) if fields.blur_type in ("box", "both") else image


def noisy(image: Image.Image, level: float, seed: int) -> Image.Image:
    """Adds normal noise of the standard deviation 255 x ``level`` to each channel."""
    import numpy as np
    from PIL import Image

    values = np.asarray(image, dtype=np.float32)
    noise = np.random.default_rng(seed).standard_normal(values.shape, dtype=np.float32)
    return Image.fromarray(np.clip(values + 255 * level * noise + 0.5, 0, 255).astype(np.uint8))


def compressed(image: Image.Image, quality: int) -> Image.Image:
    """Returns what is left of an RGB image after it was saved as JPEG."""
    from PIL import Image

    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality)
    stream.seek(0)
    with Image.open(stream, formats=("JPEG",)) as opened:
        return opened.convert("RGB")


GENERATORS = (
    Generator(
        name="superresolution",
        help="a worse copy of the image: blurred, noisy, compressed.",
        synonyms=("super_resolution", "lowres"),
        fields=SuperresolutionFields,
        make=make,
    ),
)
