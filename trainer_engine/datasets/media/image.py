"""Images: measured from their headers, and loaded as 8-bit sRGB. Only the first frame of an animation counts."""

from __future__ import annotations

from collections.abc import Iterator

from PIL import Image

from trainer_engine.datasets.media.base import BrokenImage, MediaFacts, Medium
from trainer_engine.datasets.media.colour import colour_trouble
from trainer_engine.datasets.media.headers import ORIENTATION, TURNED, EndlessFile, Header, is_cut_off, read_header
from trainer_engine.datasets.media.pixels import (
    DECODING_ERRORS,
    cicp_of,
    colour_mode,
    decoded,
    open_rgb,
    opened,
    profile_of,
    refuse_bombs,
    refuse_endless,
    stream_of,
)
from trainer_engine.datasets.sources.base import SourceFile, reason_of

SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".avif", ".gif", ".tif", ".tiff")
    + (".bmp", ".dib", ".jp2", ".j2k", ".jpx", ".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".ico", ".qoi")
)
UNSUPPORTED = frozenset(
    (".svg", ".svgz", ".heic", ".heif", ".jxl", ".psd", ".eps", ".pdf", ".exr", ".hdr")
    + (".raw", ".cr2", ".cr3", ".nef", ".arw", ".dng", ".orf", ".rw2")
)
PIXEL_RULE = 2
"""2: converted to sRGB."""


def inspect_image(file: SourceFile) -> MediaFacts:
    """Reads size and colours from the header. Raises BrokenImage.

    Pixels are decoded only if the file seems to be cut off, to find out whether it is.
    """
    try:
        with file.open() as stream:
            header = read_header(stream, file.size_bytes)
    except OSError as error:
        raise BrokenImage(file.location, f"it cannot be read: {reason_of(error)}") from error
    except EndlessFile as error:
        raise BrokenImage(file.location, str(error)) from error
    if header is None:
        header = _header_by_pillow(file)
    size = header.width, header.height
    refuse_bombs(file, size)
    if not header.whole:
        with decoded(file):
            pass
    return MediaFacts(size, _colour_remark(file, header))


def _colour_remark(file: SourceFile, header: Header) -> str:
    if header.profile:
        return colour_trouble(header.mode, header.profile)
    if not header.names_colours:
        return ""
    with opened(file) as image:
        return colour_trouble(colour_mode(image), profile_of(image), cicp_of(image, file))


def _header_by_pillow(file: SourceFile) -> Header:
    refuse_endless(file)
    with opened(file) as image:
        width, height = image.size
        refuse_bombs(file, image.size)
        try:
            # Pillow gives the size of a TIFF after rotation. It decodes the pixels of a PNG to read the chunks after them.
            turned, readable = image.format != "TIFF" and image.getexif().get(ORIENTATION) in TURNED, True
        except DECODING_ERRORS:
            turned, readable = False, False
        names_colours = bool(profile_of(image) or cicp_of(image, file))
    with stream_of(file) as stream:
        whole = readable and not is_cut_off(stream, file.size_bytes)
    width, height = (height, width) if turned else (width, height)
    return Header(width, height, whole, names_colours=names_colours)


def _only_frame(file: SourceFile) -> Iterator[Image.Image]:
    yield open_rgb(file)


MEDIUM = Medium(name="image", suffixes=SUFFIXES, unsupported=UNSUPPORTED, pixel_rule=PIXEL_RULE, measure=inspect_image, frames=_only_frame)
