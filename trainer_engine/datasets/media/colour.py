"""Converts images from other colour spaces to sRGB, which networks are trained on.

Sources: ICC.1:2022 (profiles), ITU-T H.273 (code points of cICP). Images with an unusable profile are not converted.
"""

from __future__ import annotations

import io
import struct
from functools import lru_cache
from typing import cast

from PIL import Image, ImageChops, ImageCms

LARGEST_PROFILE_BYTES = 4 << 20
"""Size limit of profiles, above those of printing presses."""
SAME_COLOUR = 2
"""A profile whose colours differ from sRGB by at most this (of 255) counts as sRGB, since converting would only add rounding errors."""
DIMMEST_WHITE, BRIGHTEST_BLACK = 200, 80
"""A profile that maps white below or black above these is damaged."""
MODES = {b"RGB ": ("RGB", "L"), b"GRAY": ("L",), b"CMYK": ("CMYK",)}
"""Colour space of a profile -> modes of images that it applies to. Grey images often have the RGB profile of their editor."""
PRIMARIES = {
    1: ((0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.71410)),  # BT.709
    9: ((0.67348, 0.27904, -0.00194), (0.16566, 0.67534, 0.02998), (0.12505, 0.04561, 0.79686)),  # BT.2020
    12: ((0.51512, 0.24120, -0.00105), (0.29198, 0.69225, 0.04189), (0.15710, 0.06657, 0.78407)),  # Display P3
}
"""Primaries code of cICP -> XYZ of red, green and blue, adapted to the white point of profiles (D50)."""
BT_709_CURVE = (1 / 0.45, 1 / 1.099297, 0.099297 / 1.099297, 1 / 4.5, 0.081243)
TRANSFERS: dict[int, tuple[float, ...]] = {
    1: BT_709_CURVE,
    4: (2.2,),
    5: (2.8,),
    6: BT_709_CURVE,
    8: (1.0,),
    13: (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045),
    14: BT_709_CURVE,
    15: BT_709_CURVE,
}
"""Transfer code of cICP -> parameters of the profile's curve: an exponent, or the five parameters of a curve with a linear part."""
HIGH_DYNAMIC_RANGE = {16: "PQ", 18: "HLG"}
WHITE_D50 = (0.9642, 1.0, 0.8249)


class UnusableColours(ValueError):
    """The colour space of a file cannot be used. The message says why."""


def as_srgb(image: Image.Image, profile: bytes, cicp: bytes = b"") -> Image.Image:
    """Converts an L, RGB or CMYK image to RGB in sRGB. ``cicp``, the content of the cICP chunk, overrides the profile."""
    try:
        if cicp:
            profile, image = profile_of_cicp(cicp), _full_range(image, cicp)
        transform = find_transform(profile, image.mode) if profile else None
        if transform is not None:
            return _applied(transform, image.convert("RGB") if profile[16:20] == b"RGB " else image)
    except UnusableColours:
        pass  # the examination of the dataset reports it
    return image.convert("RGB")


def _applied(transform: ImageCms.ImageCmsTransform, image: Image.Image) -> Image.Image:
    try:
        return cast(Image.Image, ImageCms.applyTransform(image, transform))
    except ImageCms.PyCMSError as error:
        raise UnusableColours("its colour profile is damaged") from error


def colour_trouble(mode: str, profile: bytes, cicp: bytes = b"") -> str:
    """Returns why the colours of an image cannot be converted, or an empty string if they can."""
    try:
        chosen = profile_of_cicp(cicp) if cicp else profile
        if chosen:
            find_transform(chosen, mode)
    except UnusableColours as error:
        return str(error)
    return ""


@lru_cache(maxsize=8)
def find_transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Returns the transform from a profile to sRGB, or None if the profile is sRGB. Raises UnusableColours."""
    if len(profile) > LARGEST_PROFILE_BYTES:
        raise UnusableColours(f"its colour profile is larger than {LARGEST_PROFILE_BYTES >> 20} MiB")
    if profile[36:40] != b"acsp":
        raise UnusableColours("its colour profile is damaged")
    space = profile[16:20]
    if mode not in MODES.get(space, ()):
        named = space.decode("ascii", "replace").strip()
        raise UnusableColours(f"its colour profile is for {named} images, but it is {'grey' if mode == 'L' else mode}")
    source = "RGB" if space == b"RGB " else mode
    try:
        transform = ImageCms.buildTransform(ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB"), source, "RGB")
    except (ImageCms.PyCMSError, OSError, ValueError) as error:
        raise UnusableColours("its colour profile is damaged") from error
    return None if _is_srgb(transform, source) else transform


def _is_srgb(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    """Whether a transform hardly changes colours. Raises UnusableColours if it does not preserve white and black."""
    probe = _probe(mode)
    plain = probe.convert("RGB")
    shown = _applied(transform, probe)
    white, black = shown.getpixel((0, 0)), shown.getpixel((1, 0))
    assert isinstance(white, tuple) and isinstance(black, tuple)
    if min(white) < DIMMEST_WHITE or max(black) > BRIGHTEST_BLACK:
        raise UnusableColours("its colour profile is damaged: white or black becomes another colour")
    if mode == "CMYK":
        return False
    extrema = cast(tuple[tuple[int, int], ...], ImageChops.difference(plain, shown).getextrema())
    return max(high for _, high in extrema) <= SAME_COLOUR


def _probe(mode: str) -> Image.Image:
    """Returns one row of pixels with colours from the complete space. White and black are first."""
    if mode == "CMYK":
        return Image.frombytes(mode, (2, 1), bytes(4) + b"\xff" * 4)
    if mode == "L":
        return Image.frombytes(mode, (258, 1), b"\xff\0" + bytes(range(256)))
    steps = range(0, 256, 15)
    colours = b"".join(bytes((red, green, blue)) for red in steps for green in steps for blue in steps)
    return Image.frombytes(mode, (2 + len(colours) // 3, 1), b"\xff\xff\xff\0\0\0" + colours)


def profile_of_cicp(cicp: bytes) -> bytes:
    """Returns an ICC profile for the code points of a cICP chunk. Raises UnusableColours."""
    if len(cicp) != 4 or cicp[2] != 0 or cicp[3] > 1:
        raise UnusableColours("its cICP chunk is damaged")
    primaries, transfer = cicp[0], cicp[1]
    if transfer in HIGH_DYNAMIC_RANGE:
        raise UnusableColours(f"its cICP chunk sets HDR brightness ({HIGH_DYNAMIC_RANGE[transfer]}), which 8 bits cannot hold")
    if primaries not in PRIMARIES or transfer not in TRANSFERS:
        raise UnusableColours(f"its cICP chunk has unsupported colour primaries {primaries} or transfer {transfer}")
    return _matrix_profile(PRIMARIES[primaries], TRANSFERS[transfer])


def _full_range(image: Image.Image, cicp: bytes) -> Image.Image:
    """From 16 .. 235 to 0 .. 255, where the chunk says that video levels are meant."""
    if cicp[3]:
        return image
    levels = [min(255, max(0, round((value - 16) * 255 / 219))) for value in range(256)]
    return image.point(levels * len(image.getbands()))


def _matrix_profile(primaries: tuple[tuple[float, float, float], ...], curve: tuple[float, ...]) -> bytes:
    """Builds an ICC profile from three primaries and one curve."""
    kind = 0 if len(curve) == 1 else 3
    para = b"para" + bytes(4) + struct.pack(">HH", kind, 0) + b"".join(_fixed(value) for value in curve)
    text = b"mluc" + bytes(4) + struct.pack(">II2s2sII", 1, 12, b"en", b"US", 2, 28) + "-".encode("utf-16-be") + bytes(2)
    tags = {b"desc": text, b"cprt": text, b"wtpt": _xyz(WHITE_D50)}
    tags |= {name: _xyz(colour) for name, colour in zip((b"rXYZ", b"gXYZ", b"bXYZ"), primaries, strict=True)}
    tags |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), para)
    table, content, first = struct.pack(">I", len(tags)), b"", 128 + 4 + 12 * len(tags)
    for name, tag in tags.items():
        table += name + struct.pack(">II", first + len(content), len(tag))
        content += tag + bytes(-len(tag) % 4)
    size = first + len(content)
    header = struct.pack(">I4sI4s4s4s", size, bytes(4), 0x04300000, b"mntr", b"RGB ", b"XYZ ")
    header += bytes(12) + b"acsp" + bytes(28) + b"".join(_fixed(value) for value in WHITE_D50) + bytes(48)
    return header + table + content


def _xyz(colour: tuple[float, float, float]) -> bytes:
    return b"XYZ " + bytes(4) + b"".join(_fixed(value) for value in colour)


def _fixed(value: float) -> bytes:
    """Encodes a number as s15Fixed16Number."""
    return struct.pack(">i", round(value * 65536))
