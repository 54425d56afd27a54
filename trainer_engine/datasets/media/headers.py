"""Reads the headers of JPEG, PNG and WebP files, which are nearly all files, without Pillow. Pillow reads other formats.

Sources: ITU-T T.81 annex B (JPEG markers), EXIF 2.3 section 4.6 (orientation), W3C PNG section 5, RFC 9649 (WebP).
"""

from __future__ import annotations

import struct
from typing import BinaryIO, NamedTuple

ORIENTATION = 0x0112
TURNED = (5, 6, 7, 8)
"""EXIF orientations that swap width and height."""
PNG_START = b"\x89PNG\r\n\x1a\n"
PNG_END = b"IEND\xaeB`\x82"
JPEG_START = b"\xff\xd8\xff"
JPEG_END = b"\xff\xd9"
PROFILE_MARKER, PROFILE_NAME = 0xE2, b"ICC_PROFILE\0"
MOST_PROFILE_PARTS = 256
"""Largest number of parts of a profile, which are counted in a byte."""
INCOMPLETE = b"incomplete"
"""Stands for a profile with missing parts, which cannot be used."""
JPEG_MODES = {1: "L", 3: "RGB", 4: "CMYK"}
FRAME_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
STANDALONE_MARKERS = frozenset((0x01, *range(0xD0, 0xD8)))
WEBP_EXIF, WEBP_XMP, WEBP_PROFILE = 0x08, 0x04, 0x20
FIRST_READ_BYTES = 8192
TAIL_BYTES = 1024
MOST_MARKERS = 5_000
"""Limit of markers and fill bytes of a JPEG before its size. Usual files have a few dozen."""
MOST_CHUNKS = 100_000
"""Limit of chunks of a PNG that are read."""
MOST_CHUNKS_BEFORE_PIXELS = 1_000
CHUNK_FRAME_BYTES = 12
"""Size of length, name and checksum of a chunk."""
LOOKED_AT_BYTES = 48
"""Number of bytes of a text chunk that are read, enough to recognise its kind."""
TRIED_FROM_THE_END = 16
TEXT_CHUNKS = (b"zTXt", b"iTXt", b"tEXt")


class EndlessFile(ValueError):
    """A crafted file that would take forever to read. The message says why."""


class Header(NamedTuple):
    """Facts from the first and last bytes of an image file."""

    width: int
    """Width after the EXIF orientation is applied, in pixels."""
    height: int
    whole: bool
    """Whether the file has its end mark. Without it the pixels may be incomplete."""
    profile: bytes = b""
    """The colour profile of a JPEG."""
    mode: str = "RGB"
    """``L``, ``RGB`` or ``CMYK``, if there is a profile."""
    names_colours: bool = False
    """Whether the file has a colour space that this header does not contain, and that must be read from the file."""


def read_header(stream: BinaryIO, size_bytes: int) -> Header | None:
    """Reads the header of a JPEG, PNG or WebP, or returns None for other formats and unusual files. Raises OSError, EndlessFile."""
    start = stream.read(FIRST_READ_BYTES)
    if start.startswith(JPEG_START):
        return _jpeg(stream, start, size_bytes)
    if start.startswith(PNG_START):
        return _png(stream, start, size_bytes)
    if start.startswith(b"RIFF") and start[8:12] == b"WEBP":
        return _webp(start, size_bytes)
    return None


def is_cut_off(stream: BinaryIO, size_bytes: int) -> bool:
    """Whether a file is shorter than its header says, for formats that record their length. Raises OSError."""
    start = stream.read(16)
    if start.startswith(b"RIFF") and len(start) == 16:
        return _riff_bytes(start) > size_bytes
    if start.startswith(b"BM") and len(start) == 16:
        (length,) = struct.unpack_from("<I", start, 2)
        return int(length) > size_bytes
    if start.startswith(b"GIF8"):
        return not _tail(stream, start, size_bytes).rstrip(b"\0").endswith(b"\x3b")
    return False


def _tail(stream: BinaryIO, start: bytes, size_bytes: int) -> bytes:
    if size_bytes <= len(start):
        return start[-TAIL_BYTES:]
    stream.seek(max(0, size_bytes - TAIL_BYTES))
    return stream.read(TAIL_BYTES)


def _png(stream: BinaryIO, start: bytes, size_bytes: int) -> Header | None:
    if len(start) < 33 or start[12:16] != b"IHDR":
        return None
    width, height = struct.unpack_from(">II", start, 16)
    pixels = _png_pixels(start)
    if not width or not height or pixels is None or _png_is_turned_later(stream, pixels, size_bytes):
        return None
    names_colours = any(kind in start[:pixels] for kind in (b"iCCP", b"cICP"))
    return Header(width, height, PNG_END in _tail(stream, start, size_bytes), names_colours=names_colours)


def read_cicp(stream: BinaryIO) -> bytes:
    """Returns the content of a PNG's cICP chunk, which precedes the pixels, or nothing if it has none. Raises OSError."""
    position = len(PNG_START)
    for _ in range(MOST_CHUNKS_BEFORE_PIXELS):
        stream.seek(position)
        head = stream.read(12)
        if len(head) < 12 or head[4:8] in (b"IDAT", b"IEND"):
            return b""
        if head[4:8] == b"cICP":
            return head[8:12]
        position += CHUNK_FRAME_BYTES + int(struct.unpack_from(">I", head)[0])
    return b""


def _png_pixels(start: bytes) -> int | None:
    """Returns the offset of the pixels, or None if a chunk before them may change the size, or they are not in ``start``."""
    position = 8
    while position + 8 <= len(start):
        length, kind = struct.unpack_from(">I4s", start, position)
        if kind == b"IDAT":
            return position
        if kind == b"acTL" or _may_hold_orientation(kind, start[position + 8 : position + 8 + LOOKED_AT_BYTES]):
            return None
        position += CHUNK_FRAME_BYTES + int(length)
    return None


def _may_hold_orientation(kind: bytes, content: bytes) -> bool:
    return kind == b"eXIf" or (kind in TEXT_CHUNKS and content.startswith((b"Raw profile type exif", b"XML:com.adobe.xmp")))


def _png_is_turned_later(stream: BinaryIO, position: int, size_bytes: int) -> bool:
    """Whether a chunk after the pixels may hold an orientation, which the decoder applies too.

    ``position`` is the offset of the first pixels. Raises EndlessFile.
    """
    position = _late_pixels(stream, position, size_bytes)
    for _ in range(MOST_CHUNKS):
        stream.seek(position)
        head = stream.read(8 + LOOKED_AT_BYTES)
        if len(head) < 8 or head[4:8] == b"IEND":
            return False
        if _may_hold_orientation(head[4:8], head[8:]):
            return True
        position += CHUNK_FRAME_BYTES + int(struct.unpack_from(">I", head)[0])
    raise EndlessFile(f"its pixels lie in more than {MOST_CHUNKS} pieces")


def _late_pixels(stream: BinaryIO, first: int, size_bytes: int) -> int:
    """Returns the offset of a pixel chunk near the last one, to skip most of them. Encoders make all but the last equally long."""
    stream.seek(first)
    frame = CHUNK_FRAME_BYTES + int(struct.unpack_from(">I", stream.read(8))[0])
    for number in range((size_bytes - first - 8) // frame, 0, -1)[:TRIED_FROM_THE_END]:
        stream.seek(first + number * frame)
        head = stream.read(8)
        if head[4:] == b"IDAT" and struct.unpack_from(">I", head)[0] + CHUNK_FRAME_BYTES <= frame:
            return first + number * frame
    return first


def _riff_bytes(start: bytes) -> int:
    return int(struct.unpack_from("<I", start, 4)[0]) + 8


def _webp(start: bytes, size_bytes: int) -> Header | None:
    if len(start) < 30:
        return None
    kind, whole = start[12:16], _riff_bytes(start) <= size_bytes
    if kind == b"VP8 " and start[23:26] == b"\x9d\x01\x2a":
        width, height = struct.unpack_from("<HH", start, 26)
        width, height = width & 0x3FFF, height & 0x3FFF
    elif kind == b"VP8L" and start[20] == 0x2F:
        (bits,) = struct.unpack_from("<I", start, 21)
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    elif kind == b"VP8X" and not start[20] & (WEBP_EXIF | WEBP_XMP):
        width = int.from_bytes(start[24:27], "little") + 1
        height = int.from_bytes(start[27:30], "little") + 1
    else:
        return None
    names_colours = kind == b"VP8X" and bool(start[20] & WEBP_PROFILE)
    return Header(width, height, whole, names_colours=names_colours) if width and height else None


def _jpeg(stream: BinaryIO, start: bytes, size_bytes: int) -> Header | None:
    position, orientation, data, offset = 2, 1, start, 0
    profile: list[bytes] = []
    for _ in range(MOST_MARKERS):
        if position - offset + 10 > len(data):
            stream.seek(position)
            data, offset = stream.read(FIRST_READ_BYTES), position
            if len(data) < 10:
                return None
        here = position - offset
        if data[here] != 0xFF:
            return None
        marker = data[here + 1]
        if marker == 0xFF:
            position += 1
            continue
        if marker in STANDALONE_MARKERS:
            position += 2
            continue
        (length,) = struct.unpack_from(">H", data, here + 2)
        if marker in FRAME_MARKERS:
            height, width, components = struct.unpack_from(">HHB", data, here + 5)
            break
        if length < 2 or marker in (0xD9, 0xDA):
            return None
        if marker == PROFILE_MARKER and len(profile) < MOST_PROFILE_PARTS:
            profile.append(_segment(stream, data, here + 4, offset, length - 2))
        if marker == 0xE1:
            segment = _segment(stream, data, here + 4, offset, length - 2)
            if segment.startswith(b"http://ns.adobe.com/xap"):
                if b"Orientation" in segment:
                    return None
            else:
                orientation = exif_orientation(segment) or orientation
        position += 2 + length
    else:
        return None
    if not width or not height:
        return None
    whole = JPEG_END in _tail(stream, start, size_bytes)
    width, height = (height, width) if orientation in TURNED else (width, height)
    return Header(width, height, whole, _joined_profile(profile), JPEG_MODES.get(components, "RGB"))


def _joined_profile(segments: list[bytes]) -> bytes:
    """Joins a profile from its numbered segments (ICC.1:2022 annex B.4)."""
    parts = sorted(segment for segment in segments if segment.startswith(PROFILE_NAME) and len(segment) > len(PROFILE_NAME) + 2)
    if parts and parts[0][len(PROFILE_NAME) + 1] != len(parts):
        return INCOMPLETE
    return b"".join(part[len(PROFILE_NAME) + 2 :] for part in parts)


def _segment(stream: BinaryIO, data: bytes, here: int, offset: int, length: int) -> bytes:
    if here + length <= len(data):
        return data[here : here + length]
    stream.seek(offset + here)
    return stream.read(length)


def exif_orientation(segment: bytes) -> int:
    """Returns the orientation (1 to 8) in an EXIF segment, or 0 if it has none or is damaged."""
    if not segment.startswith(b"Exif\0\0") or segment[6:8] not in (b"II", b"MM"):
        return 0
    order = "<" if segment[6:8] == b"II" else ">"
    tiff = segment[6:]
    try:
        (directory,) = struct.unpack_from(order + "I", tiff, 4)
        (count,) = struct.unpack_from(order + "H", tiff, directory)
        for index in range(count):
            tag, kind, _, value = struct.unpack_from(order + "HHIH", tiff, directory + 2 + 12 * index)
            if tag == ORIENTATION:
                return int(value) if kind == 3 and 1 <= value <= 8 else 0
    except struct.error:
        return 0
    return 0
