"""Measures and opens image files safely, whatever they contain."""

# ruff: noqa: PTH110, PTH116, PTH118, PTH122, PTH123
# Paths are text here: over 20,000 files, Path objects cost as much as reading the headers.
from __future__ import annotations

import hashlib
import io
import os
import struct
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from PIL import Image, ImageOps, UnidentifiedImageError

from trainer_engine.contract.errors import EngineError, ExitCode
from trainer_engine.contract.files import sha256_of
from trainer_engine.datasets import geometry
from trainer_engine.datasets.colour import as_srgb, colour_trouble
from trainer_engine.datasets.geometry import Size
from trainer_engine.datasets.headers import ORIENTATION, TURNED, EndlessFile, Header, is_cut_off, read_cicp, read_header
from trainer_engine.datasets.sources.local import printable, reason_of

if TYPE_CHECKING:
    from trainer_engine.datasets.samples import Sample

LARGEST_PIXELS = 2**27
"""134 megapixels, or 400 MB once decoded: more than any camera has, and less than a crafted file would need."""
MOST_READS = 20_000
"""Limit of reads for one header. Usual ones need fewer than a hundred."""
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "AVIF", "JPEG2000", "PPM", "TGA", "ICO", "QOI")
"""The allowed decoders. A file name proves nothing, and some other decoders start programs."""
PIXEL_RULE = 2
"""Version of the pixels that a file gives, part of the addresses of cached latents. 2: converted to sRGB."""
WHITE = (255, 255, 255)
DECODING_ERRORS = (OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, EOFError, OverflowError, struct.error, zlib.error)
"""Exceptions that decoders raise for damaged files; Pillow does not catch them."""

# Pillow warns above its limit and refuses above twice its limit. Ours is checked before any pixel is decoded.
Image.MAX_IMAGE_PIXELS = LARGEST_PIXELS


class BrokenImage(EngineError):
    """An image file that cannot be used. ``reason`` says why, without the name of the file."""

    code = "broken_image"
    exit_code = ExitCode.DATA

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{printable(path)}: {reason}", hint="remove the file, or replace it")
        self.reason = reason


class ImageFacts(NamedTuple):
    """Facts about an image file from its header."""

    size: Size
    """(width, height) after the EXIF orientation is applied."""
    remark: str
    """Why its colours are not converted to sRGB; empty if they can be."""


def measure(path: str, size_bytes: int) -> Size:
    """Returns (width, height) after the EXIF orientation, from the header. Raises BrokenImage."""
    return inspect_image(path, size_bytes).size


def inspect_image(path: str, size_bytes: int) -> ImageFacts:
    """Reads size and colours from the header. Raises BrokenImage.

    Pixels are decoded only if the file seems to be cut off, to find out whether it is.
    """
    try:
        with open(path, "rb") as stream:
            header = read_header(stream, size_bytes)
    except OSError as error:
        raise BrokenImage(path, f"it cannot be read: {reason_of(error)}") from error
    except EndlessFile as error:
        raise BrokenImage(path, str(error)) from error
    if header is None:
        header = _header_by_pillow(path, size_bytes)
    size = header.width, header.height
    _refuse_bombs(path, size)
    if not header.whole:
        with _decode(path):
            pass
    return ImageFacts(size, _colour_remark(path, header))


def _colour_remark(path: str, header: Header) -> str:
    if header.profile:
        return colour_trouble(header.mode, header.profile)
    if not header.names_colours:
        return ""
    with _open(path) as image:
        return colour_trouble(_colour_mode(image), _profile_of(image), _cicp_of(image, path))


def _profile_of(image: Image.Image) -> bytes:
    found = image.info.get("icc_profile")
    return found if isinstance(found, bytes) else b""  # a crafted TIFF may hold numbers there


def _cicp_of(image: Image.Image, path: str) -> bytes:
    """Returns the content of a PNG's cICP chunk, which Pillow does not read. Raises BrokenImage."""
    if image.format != "PNG":
        return b""
    try:
        with open(path, "rb") as stream:
            return read_cicp(stream)
    except OSError as error:
        raise BrokenImage(path, f"it cannot be read: {reason_of(error)}") from error


def _refuse_bombs(path: str, size: Size) -> None:
    if size[0] * size[1] > LARGEST_PIXELS:
        limit = LARGEST_PIXELS // 1_000_000
        raise BrokenImage(path, f"{size[0]}x{size[1]} is {size[0] * size[1] / 1e6:.0f} megapixels; at most {limit} are opened")


def _header_by_pillow(path: str, size_bytes: int) -> Header:
    _refuse_endless(path)
    with _open(path) as image:
        width, height = image.size
        _refuse_bombs(path, image.size)
        try:
            # Pillow gives the size of a TIFF after rotation. It decodes the pixels of a PNG to read the chunks after them.
            turned, readable = image.format != "TIFF" and image.getexif().get(ORIENTATION) in TURNED, True
        except DECODING_ERRORS:
            turned, readable = False, False
        names_colours = bool(_profile_of(image) or _cicp_of(image, path))
    with open(path, "rb") as stream:
        whole = readable and not is_cut_off(stream, size_bytes)
    width, height = (height, width) if turned else (width, height)
    return Header(width, height, whole, names_colours=names_colours)


class _FewReads(io.BufferedReader):
    """A file that raises OSError after ``MOST_READS`` reads."""

    left = MOST_READS

    def read(self, size: int | None = -1, /) -> bytes:
        self.left -= 1
        if self.left < 0:
            raise OSError("its header has no end")
        return super().read(size)


def _refuse_endless(path: str) -> None:
    """Raises BrokenImage for a crafted header without end, since Pillow reads markers, chunks and comments one by one."""
    with _FewReads(io.FileIO(path)) as stream:
        try:
            Image.open(stream, formats=FORMATS)
        except OSError as error:
            if stream.left < 0:
                raise BrokenImage(path, str(error)) from error
        except (*DECODING_ERRORS, Image.DecompressionBombError, MemoryError):
            return  # opening it again gives the reason


def _open(path: str) -> Image.Image:
    """Opens a file as a Pillow image without decoding pixels. Raises BrokenImage."""
    try:
        return Image.open(path, formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise BrokenImage(path, f"it would unpack to more than {2 * LARGEST_PIXELS // 1_000_000} megapixels") from error
    except UnidentifiedImageError as error:
        raise BrokenImage(path, "it is not an image, despite its name") from error
    except PermissionError as error:
        raise BrokenImage(path, f"it cannot be read: {reason_of(error)}") from error
    except (*DECODING_ERRORS, MemoryError) as error:
        raise BrokenImage(path, f"its header is damaged: {error}") from error


def _decode(path: str) -> Image.Image:
    """Decodes the first frame of a file. Raises BrokenImage."""
    image = _open(path)
    try:
        _refuse_bombs(path, image.size)
        image.load()
    except (*DECODING_ERRORS, MemoryError) as error:
        image.close()
        reason = "the file is cut off" if "truncated" in str(error).lower() else "its pixels cannot be decoded"
        raise BrokenImage(path, f"{reason}: {error}") from error
    except BrokenImage:
        image.close()
        raise
    return image


def open_rgb(path: str) -> Image.Image:
    """Opens the first frame of an image, with EXIF orientation applied, as 8-bit sRGB on white. Raises BrokenImage."""
    with _decode(path) as image:
        try:
            return _as_rgb(ImageOps.exif_transpose(image), _profile_of(image), _cicp_of(image, path))
        except (*DECODING_ERRORS, MemoryError) as error:
            raise BrokenImage(path, f"its pixels cannot be converted: {error}") from error


def _as_rgb(image: Image.Image, profile: bytes, cicp: bytes) -> Image.Image:
    """Converts an image to sRGB, with transparent parts on white."""
    shown = as_srgb(_colours(image), profile, cicp)
    if not _is_transparent(image):
        return shown
    opaque = Image.new("RGB", image.size, WHITE)
    opaque.paste(shown, mask=image.convert("RGBA").getchannel("A"))
    return opaque


def _is_transparent(image: Image.Image) -> bool:
    return image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info


def _colour_mode(image: Image.Image) -> str:
    """Returns L, RGB or CMYK: the mode of an image without its transparency."""
    if image.mode in ("L", "LA", "La", "1", "F") or image.mode.startswith("I"):
        return "L"
    return "CMYK" if image.mode == "CMYK" else "RGB"


def _colours(image: Image.Image) -> Image.Image:
    """Returns the image without its transparency, with 8 bits per channel, in its own colour space."""
    mode = _colour_mode(image)
    if image.mode.startswith("I") or image.mode == "F":
        return _eight_bits(image)
    if mode == "RGB" and _is_transparent(image):
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


def load_image(sample: Sample, left_top: tuple[int, int]) -> Image.Image:
    """Returns the crop of an image that is trained on: RGB of size ``sample.target``, at ``left_top`` of the scaled image.

    Raises BrokenImage, also if the file has changed since it was measured.
    """
    image = open_rgb(sample.path)
    if image.size != (sample.width, sample.height):
        raise BrokenImage(sample.path, f"its size changed from {sample.width}x{sample.height} to {image.size[0]}x{image.size[1]}")
    if image.size != sample.resized:
        image = image.resize(sample.resized, Image.Resampling.LANCZOS)
    left, top = left_top
    return image.crop((left, top, left + sample.target[0], top + sample.target[1]))


def crop_window(sample: Sample, seed: int) -> tuple[int, int]:
    """Returns (left, top) of a sample's crop. A random one depends only on the seed and the file's name in its dataset."""
    return geometry.window_offset(
        sample.resized, sample.target, sample.crop.style, random_numbers(sample.random_name or sample.name, f"window {seed}")
    )


def random_numbers(name: str, purpose: str) -> tuple[float, float]:
    """Returns two numbers in [0, 1) that depend only on a file's name and their purpose, the same on every machine."""
    digest = hashlib.blake2b(os.fsencode(name), person=hashlib.blake2b(purpose.encode(), digest_size=16).digest(), digest_size=16).digest()
    first, second = struct.unpack("<QQ", digest)
    return (first >> 11) / 2**53, (second >> 11) / 2**53


def content_hash(path: str) -> str:
    """Returns the SHA-256 of a file. Raises BrokenImage if it cannot be read."""
    try:
        return sha256_of(Path(path))
    except OSError as error:
        raise BrokenImage(path, f"it cannot be read: {reason_of(error)}") from error
