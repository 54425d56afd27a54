"""A folder of pictures as cameras, phones and editors leave them, and what a person sees in each."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

SIZE = (60, 40)
STORED = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_90", 7: "TRANSVERSE", 8: "ROTATE_270"}
"""How a picture lies in a file of each EXIF orientation."""


def picture() -> Image.Image:
    """Four corners of different colours, so that every turn and every exchange of channels shows."""
    image = Image.new("RGB", SIZE, (240, 200, 30))
    draw = ImageDraw.Draw(image)
    width, height = SIZE
    draw.rectangle((0, 0, width // 2, height // 2), fill=(200, 40, 40))
    draw.rectangle((width // 2, height // 2, width, height), fill=(30, 60, 190))
    draw.rectangle((0, height // 2, width // 2, height), fill=(90, 90, 90))
    return image


def stored(orientation: int) -> Image.Image:
    turn = STORED.get(orientation)
    return picture().transpose(Image.Transpose[turn]) if turn else picture()


def exif(orientation: int) -> bytes:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags.tobytes()


def chunk(kind: bytes, content: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def encoded(image: Image.Image, kind: str, **how: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **how)
    return stream.getvalue()


def png(image: Image.Image, *, before: bytes = b"", after: bytes = b"", piece: int | None = None) -> bytes:
    """With chunks before or after the pixels, which lie in pieces of so many bytes."""
    pixels = np.asarray(image)
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    packed = zlib.compress(rows)
    size = piece or len(packed)
    head = struct.pack(">IIBBBBB", image.width, image.height, 8, 2, 0, 0, 0)
    data = b"".join(chunk(b"IDAT", packed[start : start + size]) for start in range(0, len(packed), size))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + before + data + after + chunk(b"IEND", b"")


def orientation_chunks(orientation: int) -> dict[str, bytes]:
    """The three kinds of chunk that may say how a PNG is turned."""
    tiff = exif(orientation).removeprefix(b"Exif\0\0")
    profile = b"\nexif\n%8d\n" % len(exif(orientation)) + exif(orientation).hex().encode() + b"\n"
    xmp = f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="{orientation}"/></x:xmpmeta>'.encode()
    return {
        "exif": chunk(b"eXIf", tiff),
        "raw": chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(profile)),
        "xmp": chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp),
    }


def odd_pictures() -> Iterator[tuple[str, bytes, Image.Image]]:
    """(name, content, what a person sees)."""
    image = picture()
    for turn in range(1, 9):
        for suffix, kind, how in (("jpg", "JPEG", {"quality": 95}), ("webp", "WEBP", {"lossless": True}), ("png", "PNG", {})):
            yield f"{kind}-{turn}.{suffix}", encoded(stored(turn), kind, exif=exif(turn), **how), image
        for name, found in orientation_chunks(turn).items():
            yield f"{name}-before-{turn}.png", png(stored(turn), before=found), image
            yield f"{name}-after-{turn}.png", png(stored(turn), after=chunk(b"tIME", b"\x07\xea\1\1\0\0\0") + found), image
            yield f"{name}-after-pieces-{turn}.png", png(stored(turn), after=found, piece=10 + turn), image
    grey = image.convert("L")
    wide = (np.asarray(grey, np.uint16) * 257).astype(">u2")
    head = struct.pack(">IIBBBBB", *SIZE, 16, 0, 0, 0, 0)
    rows = zlib.compress(b"".join(b"\0" + row.tobytes() for row in wide))
    yield "grey16.png", b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b""), grey
    yield "palette.gif", encoded(image.quantize(16), "GIF"), image
    yield "cmyk.jpg", encoded(image.convert("CMYK"), "JPEG", quality=97), image
    yield "really-a-webp.jpg", encoded(image, "WEBP", lossless=True), image
    yield "new\nline.png", encoded(image, "PNG"), image
    moving = {"save_all": True, "append_images": [Image.new("RGB", SIZE)], "duration": 90}
    yield "moving.png", encoded(image, "PNG", **moving), image
    yield "moving.webp", encoded(image, "WEBP", lossless=True, **moving), image


LEFT_OUT = {
    "cut-off.jpg": encoded(Image.effect_noise((90, 90), 60), "JPEG")[:1500],
    "no-picture.png": b"<html>404</html>",
    "empty.jpg": b"",
    "phone.heic": b"\0\0\0\x18ftypheic",
    "next.jxl": b"\xff\x0a",
}
"""Named with a reason."""
NOT_MENTIONED = ("Thumbs.db", "desktop.ini", ".DS_Store", "._picture.png", ".hidden.jpg", "film.mp4", "notes.txt")


def write_odd_pictures(folder: Path) -> dict[str, Image.Image]:
    """Name of each usable picture -> what a person sees."""
    folder.mkdir(parents=True)
    seen = {}
    for name, content, image in odd_pictures():
        (folder / name).write_bytes(content)
        seen[name] = image.convert("RGB")
    for name, content in LEFT_OUT.items():
        (folder / name).write_bytes(content)
    for name in NOT_MENTIONED:
        (folder / name).write_bytes(b"\0\1\2")
    return seen
