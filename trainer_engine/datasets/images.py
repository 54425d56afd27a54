"""Opening files as pictures, whatever they turn out to be."""

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
"""134 megapixels, 400 MB once decoded: above every camera, below what a crafted file would unpack to."""
MOST_READS = 20_000
"""Pieces that a header is read in; usual ones are read in less than a hundred."""
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "AVIF", "JPEG2000", "PPM", "TGA", "ICO", "QOI")
"""Decoders that may see a file; a name proves nothing, and some of the others start programs."""
PIXEL_RULE = 2
"""Bumped whenever a file gives other pixels than before: latents of the old ones are not found then. 2: converted to sRGB."""
WHITE = (255, 255, 255)
DECODING_ERRORS = (OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, EOFError, OverflowError, struct.error, zlib.error)
"""What decoders raise on damaged files; Pillow lets them all through."""

# Pillow warns above its limit and refuses above twice of it; ours is checked before any pixel is decoded.
Image.MAX_IMAGE_PIXELS = LARGEST_PIXELS


class BrokenImage(EngineError):
    """A file that cannot be trained on; ``reason`` says why without naming it."""

    code = "broken_image"
    exit_code = ExitCode.DATA

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{printable(path)}: {reason}", hint="remove the file, or replace it")
        self.reason = reason


class Look(NamedTuple):
    """What a file says without its pixels being decoded."""

    size: Size
    """(width, height) as shown."""
    remark: str
    """Why its colours are taken as they are though it names others; empty where nothing is wrong."""


def measure(path: str, size_bytes: int) -> Size:
    """(width, height) as shown, from the header alone. Raises BrokenImage."""
    return look_at(path, size_bytes).size


def look_at(path: str, size_bytes: int) -> Look:
    """Size and colours from the header. Raises BrokenImage.

    Pixels are decoded only where the file's end looks cut off, to find out whether it is.
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
    return Look(size, _colour_remark(path, header))


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
    """The content of a PNG's cICP chunk; Pillow does not read it. Raises BrokenImage."""
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
            # Of a TIFF, Pillow tells the size after turning it. Of a PNG, it decodes the pixels to see what follows them.
            turned, readable = image.format != "TIFF" and image.getexif().get(ORIENTATION) in TURNED, True
        except DECODING_ERRORS:
            turned, readable = False, False
        names_colours = bool(_profile_of(image) or _cicp_of(image, path))
    with open(path, "rb") as stream:
        whole = readable and not is_cut_off(stream, size_bytes)
    width, height = (height, width) if turned else (width, height)
    return Header(width, height, whole, names_colours=names_colours)


class _FewReads(io.BufferedReader):
    """A file that ends with OSError what reads it in endless small pieces."""

    left = MOST_READS

    def read(self, size: int | None = -1, /) -> bytes:
        self.left -= 1
        if self.left < 0:
            raise OSError("its header has no end")
        return super().read(size)


def _refuse_endless(path: str) -> None:
    """Raises BrokenImage where the header is made to be read for ever: Pillow walks markers, chunks and comments one by one."""
    with _FewReads(io.FileIO(path)) as stream:
        try:
            Image.open(stream, formats=FORMATS)
        except OSError as error:
            if stream.left < 0:
                raise BrokenImage(path, str(error)) from error
        except (*DECODING_ERRORS, Image.DecompressionBombError, MemoryError):
            return  # opening it again gives the reason


def _open(path: str) -> Image.Image:
    """The file as a Pillow image, no pixel decoded. Raises BrokenImage."""
    try:
        return Image.open(path, formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise BrokenImage(path, f"it would unpack to more than {2 * LARGEST_PIXELS // 1_000_000} megapixels") from error
    except UnidentifiedImageError as error:
        raise BrokenImage(path, "it is not an image, whatever its name says") from error
    except PermissionError as error:
        raise BrokenImage(path, f"it cannot be read: {reason_of(error)}") from error
    except (*DECODING_ERRORS, MemoryError) as error:
        raise BrokenImage(path, f"its header is damaged: {error}") from error


def _decode(path: str) -> Image.Image:
    """The first picture of the file, decoded. Raises BrokenImage."""
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
    """The picture as people see it: first frame, turned upright, sRGB in 8 bits, transparency on white. Raises BrokenImage."""
    with _decode(path) as image:
        try:
            return _as_rgb(ImageOps.exif_transpose(image), _profile_of(image), _cicp_of(image, path))
        except (*DECODING_ERRORS, MemoryError) as error:
            raise BrokenImage(path, f"its pixels cannot be converted: {error}") from error


def _as_rgb(image: Image.Image, profile: bytes, cicp: bytes) -> Image.Image:
    """On white where it is transparent."""
    shown = as_srgb(_colours(image), profile, cicp)
    if not _is_transparent(image):
        return shown
    opaque = Image.new("RGB", image.size, WHITE)
    opaque.paste(shown, mask=image.convert("RGBA").getchannel("A"))
    return opaque


def _is_transparent(image: Image.Image) -> bool:
    return image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info


def _colour_mode(image: Image.Image) -> str:
    """Which of L, RGB and CMYK a picture is in, its transparency aside."""
    if image.mode in ("L", "LA", "La", "1", "F") or image.mode.startswith("I"):
        return "L"
    return "CMYK" if image.mode == "CMYK" else "RGB"


def _colours(image: Image.Image) -> Image.Image:
    """The picture without its transparency, 8 bits a channel, in its colour mode and its own colour space."""
    mode = _colour_mode(image)
    if image.mode.startswith("I") or image.mode == "F":
        return _eight_bits(image)
    if mode == "RGB" and _is_transparent(image):
        return image.convert("RGBA").convert("RGB")
    if image.mode == "La":
        return image.convert("LA").convert("L")
    return image.copy() if image.mode == mode else image.convert(mode)


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey values of 16 bits, 32 bits or floating point, scaled to 8 bits instead of clipped."""
    wide = image.convert("F")
    low, high = wide.getextrema()
    assert isinstance(low, float) and isinstance(high, float)
    factor = 255.0 if image.mode == "F" and high <= 1.0 else 1.0 if high <= 255.0 else 1 / 257
    return wide.point(lambda value: value * factor + 0.0).convert("L")


def load_image(sample: Sample, left_top: tuple[int, int]) -> Image.Image:
    """The part of the picture that is trained on: RGB of ``sample.target`` size, its corner at ``left_top`` of the scaled picture.

    Raises BrokenImage, also where the file is not the one that was measured any more.
    """
    image = open_rgb(sample.path)
    if image.size != (sample.width, sample.height):
        raise BrokenImage(sample.path, f"it is {image.size[0]}x{image.size[1]} now and was {sample.width}x{sample.height}: it was changed")
    if image.size != sample.resized:
        image = image.resize(sample.resized, Image.Resampling.LANCZOS)
    left, top = left_top
    return image.crop((left, top, left + sample.target[0], top + sample.target[1]))


def crop_window(sample: Sample, seed: int) -> tuple[int, int]:
    """(left, top) of a sample's part. Random crops follow from the seed and the file's name within its dataset alone."""
    return geometry.window_offset(
        sample.resized, sample.target, sample.crop.style, random_numbers(sample.random_name or sample.name, f"window {seed}")
    )


def random_numbers(name: str, purpose: str) -> tuple[float, float]:
    """Two numbers in [0, 1) that follow from a file's name and what they are for, on every machine."""
    digest = hashlib.blake2b(os.fsencode(name), person=hashlib.blake2b(purpose.encode(), digest_size=16).digest(), digest_size=16).digest()
    first, second = struct.unpack("<QQ", digest)
    return (first >> 11) / 2**53, (second >> 11) / 2**53


def content_hash(path: str) -> str:
    """SHA-256 of the file's bytes. Raises BrokenImage where it cannot be read."""
    try:
        return sha256_of(Path(path))
    except OSError as error:
        raise BrokenImage(path, f"it cannot be read: {reason_of(error)}") from error
