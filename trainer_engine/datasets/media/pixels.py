"""Opens image files with Pillow safely, whatever they contain, and converts their pixels to 8-bit sRGB."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO, cast

from PIL import Image, ImageOps, UnidentifiedImageError

from trainer_engine.datasets.geometry import Size
from trainer_engine.datasets.media.base import BrokenImage
from trainer_engine.datasets.media.colour import as_srgb
from trainer_engine.datasets.media.headers import read_cicp
from trainer_engine.datasets.sources.base import SourceFile, reason_of

LARGEST_PIXELS = 2**27
"""134 megapixels, or 400 MB once decoded: more than any camera has, and less than a crafted file would need."""
MOST_READS = 20_000
"""Limit of reads for one header. Usual ones need fewer than a hundred."""
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "AVIF", "JPEG2000", "PPM", "TGA", "ICO", "QOI")
"""The allowed decoders. A file name proves nothing, and some other decoders start programs."""
WHITE = (255, 255, 255)
DECODING_ERRORS = (OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, EOFError, OverflowError, struct.error, zlib.error)
"""Exceptions that decoders raise for damaged files; Pillow does not catch them."""

# Pillow warns above its limit and refuses above twice its limit. Ours is checked before any pixel is decoded.
Image.MAX_IMAGE_PIXELS = LARGEST_PIXELS


@contextmanager
def stream_of(file: SourceFile) -> Iterator[BinaryIO]:
    """Opens the bytes of a file. Raises BrokenImage if it cannot be opened."""
    try:
        stream = file.open()
    except OSError as error:
        raise BrokenImage(file.location, f"it cannot be read: {reason_of(error)}") from error
    with stream:
        yield stream


class _FewReads(io.BufferedReader):
    """A file that raises OSError after ``MOST_READS`` reads."""

    left = MOST_READS

    def read(self, size: int | None = -1, /) -> bytes:
        self.left -= 1
        if self.left < 0:
            raise OSError("its header has no end")
        return super().read(size)


def refuse_endless(file: SourceFile) -> None:
    """Raises BrokenImage for a crafted header without end, since Pillow reads markers, chunks and comments one by one."""
    with stream_of(file) as plain, _FewReads(cast(io.RawIOBase, plain)) as stream:
        try:
            Image.open(stream, formats=FORMATS)
        except OSError as error:
            if stream.left < 0:
                raise BrokenImage(file.location, str(error)) from error
        except (*DECODING_ERRORS, Image.DecompressionBombError, MemoryError):
            return  # opening it again gives the reason


def refuse_bombs(file: SourceFile, size: Size) -> None:
    """Raises BrokenImage for an image of more than ``LARGEST_PIXELS``."""
    if size[0] * size[1] > LARGEST_PIXELS:
        limit = LARGEST_PIXELS // 1_000_000
        raise BrokenImage(file.location, f"{size[0]}x{size[1]} is {size[0] * size[1] / 1e6:.0f} megapixels; at most {limit} are opened")


@contextmanager
def opened(file: SourceFile) -> Iterator[Image.Image]:
    """Opens a file as a Pillow image without decoding pixels. Raises BrokenImage."""
    with stream_of(file) as stream:
        try:
            image = Image.open(stream, formats=FORMATS)
        except Image.DecompressionBombError as error:
            raise BrokenImage(file.location, f"it would unpack to more than {2 * LARGEST_PIXELS // 1_000_000} megapixels") from error
        except UnidentifiedImageError as error:
            raise BrokenImage(file.location, "it is not an image, despite its name") from error
        except (*DECODING_ERRORS, MemoryError) as error:
            raise BrokenImage(file.location, f"its header is damaged: {error}") from error
        with image:
            yield image


@contextmanager
def decoded(file: SourceFile) -> Iterator[Image.Image]:
    """Decodes the first frame of a file. Raises BrokenImage."""
    with opened(file) as image:
        refuse_bombs(file, image.size)
        try:
            image.load()
        except (*DECODING_ERRORS, MemoryError) as error:
            reason = "the file is cut off" if "truncated" in str(error).lower() else "its pixels cannot be decoded"
            raise BrokenImage(file.location, f"{reason}: {error}") from error
        yield image


def profile_of(image: Image.Image) -> bytes:
    """Returns the colour profile of an image, or nothing."""
    found = image.info.get("icc_profile")
    return found if isinstance(found, bytes) else b""  # a crafted TIFF may hold numbers there


def cicp_of(image: Image.Image, file: SourceFile) -> bytes:
    """Returns the content of a PNG's cICP chunk, which Pillow does not read. Raises BrokenImage."""
    if image.format != "PNG":
        return b""
    with stream_of(file) as stream:
        try:
            return read_cicp(stream)
        except OSError as error:
            raise BrokenImage(file.location, f"it cannot be read: {reason_of(error)}") from error


def open_rgb(file: SourceFile) -> Image.Image:
    """Opens the first frame of an image, with EXIF orientation applied, as 8-bit sRGB on white. Raises BrokenImage."""
    with decoded(file) as image:
        try:
            return as_rgb(ImageOps.exif_transpose(image), profile_of(image), cicp_of(image, file))
        except (*DECODING_ERRORS, MemoryError) as error:
            raise BrokenImage(file.location, f"its pixels cannot be converted: {error}") from error


def as_rgb(image: Image.Image, profile: bytes = b"", cicp: bytes = b"") -> Image.Image:
    """Converts an image to sRGB, with transparent parts on white."""
    shown = as_srgb(plain_colours(image), profile, cicp)
    if not is_transparent(image):
        return shown
    opaque = Image.new("RGB", image.size, WHITE)
    opaque.paste(shown, mask=image.convert("RGBA").getchannel("A"))
    return opaque


def is_transparent(image: Image.Image) -> bool:
    return image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info


def colour_mode(image: Image.Image) -> str:
    """Returns L, RGB or CMYK: the mode of an image without its transparency."""
    if image.mode in ("L", "LA", "La", "1", "F") or image.mode.startswith("I"):
        return "L"
    return "CMYK" if image.mode == "CMYK" else "RGB"


def plain_colours(image: Image.Image) -> Image.Image:
    """Returns the image without its transparency, with 8 bits per channel, in its own colour space."""
    mode = colour_mode(image)
    if image.mode.startswith("I") or image.mode == "F":
        return _eight_bits(image)
    if mode == "RGB" and is_transparent(image):
        return image.convert("RGBA").convert("RGB")
    if image.mode == "La":
        return image.convert("LA").convert("L")
    return image.copy() if image.mode == mode else image.convert(mode)


def _eight_bits(image: Image.Image) -> Image.Image:
    """Scales grey values of 16 bits, 32 bits or floating point to 8 bits instead of clipping them."""
    wide = image.convert("F")
    low, high = wide.getextrema()
    assert isinstance(low, float) and isinstance(high, float)
    factor = 255.0 if image.mode == "F" and high <= 1.0 else 1.0 if high <= 255.0 else 1 / 257
    return wide.point(lambda value: value * factor + 0.0).convert("L")
