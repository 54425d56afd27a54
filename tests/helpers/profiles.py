"""Colour profiles and the numbers that they mean, computed without a colour engine."""

from __future__ import annotations

import struct

import numpy as np
from PIL import Image

from trainer_engine.datasets.media.colour import PRIMARIES, TRANSFERS, _matrix_profile

D65 = (0.3127, 0.3290)
CHROMATICITIES = {
    "srgb": ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06)),
    "p3": ((0.68, 0.32), (0.265, 0.69), (0.15, 0.06)),
    "adobe": ((0.64, 0.33), (0.21, 0.71), (0.15, 0.06)),
    "bt2020": ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046)),
}
ADOBE_D50 = ((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457))
ADOBE_GAMMA = 563 / 256


def display_p3() -> bytes:
    return _matrix_profile(PRIMARIES[12], TRANSFERS[13])


def adobe_rgb() -> bytes:
    return _matrix_profile(ADOBE_D50, (ADOBE_GAMMA,))


def srgb() -> bytes:
    return _matrix_profile(PRIMARIES[1], TRANSFERS[13])


def grey(gamma: float) -> bytes:
    """A profile of one curve."""
    profile = _matrix_profile(PRIMARIES[1], (gamma,))
    return profile[:16] + b"GRAY" + profile[20:].replace(b"rTRC", b"kTRC", 1)


def cmyk() -> bytes:
    """A profile of a press whose ink is paler than plain arithmetic has it: a table of 2 x 2 x 2 x 2 colours in Lab."""
    table = b""
    for corner in range(16):
        cyan, magenta, yellow, black = (corner >> shift & 1 for shift in (3, 2, 1, 0))
        lightness = (100 - 20 * (cyan + magenta) - 5 * yellow) * (0.1 if black else 1.0)
        table += bytes((round(lightness * 2.55), 128 - 30 * cyan + 40 * magenta, 128 - 30 * cyan + 60 * yellow))
    ramp = bytes(range(256))
    identity = b"".join(struct.pack(">i", 65536 if place % 4 == 0 else 0) for place in range(9))
    lut = b"mft1" + bytes(4) + bytes((4, 3, 2, 0)) + identity + ramp * 4 + table + ramp * 3
    text = b"text" + bytes(4) + b"-\0"
    white = b"XYZ " + bytes(4) + struct.pack(">iii", 63190, 65536, 54061)
    tags = {b"desc": text, b"cprt": text, b"wtpt": white, b"A2B0": lut}
    directory, content, first = struct.pack(">I", len(tags)), b"", 132 + 12 * len(tags)
    for name, tag in tags.items():
        directory += name + struct.pack(">II", first + len(content), len(tag))
        content += tag + bytes(-len(tag) % 4)
    header = struct.pack(">I4sI4s4s4s", first + len(content), bytes(4), 0x02400000, b"prtr", b"CMYK", b"Lab ")
    header += bytes(12) + b"acsp" + bytes(28) + struct.pack(">iii", 63190, 65536, 54061) + bytes(48)
    return header + directory + content


def to_xyz(space: str) -> np.ndarray:
    """The 3 x 3 matrix from linear RGB to XYZ."""
    columns = np.array([[x / y, 1.0, (1 - x - y) / y] for x, y in CHROMATICITIES[space]]).T
    white = np.array([D65[0] / D65[1], 1.0, (1 - sum(D65)) / D65[1]])
    return np.asarray(columns * np.linalg.solve(columns, white))


def meant_in_srgb(image: Image.Image, space: str) -> np.ndarray:
    """(H, W, 3) in 0 .. 255: what the numbers of a picture in another space are in sRGB."""
    values = np.asarray(image, np.float64) / 255
    linear = values**ADOBE_GAMMA if space == "adobe" else np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    shown = np.clip(linear @ np.linalg.solve(to_xyz("srgb"), to_xyz(space)).T, 0, 1)
    return np.asarray(255 * np.where(shown <= 0.0031308, 12.92 * shown, 1.055 * shown ** (1 / 2.4) - 0.055))
