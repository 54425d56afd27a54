"""Sizes of generated images, as ``validation_resolution`` names them."""

from __future__ import annotations

import math
import re

MEGAPIXELS_BELOW = 128
"""A single number below this means megapixels."""
MOST_MEGAPIXELS = 16
"""A number between this and ``MEGAPIXELS_BELOW`` is refused: it is too large an area and too small an edge."""
EDGE_MULTIPLE = 8
"""Edges are multiples of a cell of the latents."""
SMALLEST_PX, LARGEST_PX = 64, 8192
"""Shortest and longest edge."""


def parse_resolutions(text: str) -> list[tuple[int, int]]:
    """Returns (width, height) for each part of ``text``, without duplicates. Raises ValueError that names the part that is not a size."""
    return list(dict.fromkeys(_parse_resolution(part.strip()) for part in text.split(",")))


def _parse_resolution(text: str) -> tuple[int, int]:
    pair = re.fullmatch(r"(\d{1,5})\s*[xX*]\s*(\d{1,5})", text)
    if pair:
        size = int(pair[1]), int(pair[2])
    elif re.fullmatch(r"\d{1,5}(\.\d+)?", text):
        number = float(text)
        if MOST_MEGAPIXELS < number < MEGAPIXELS_BELOW:
            raise ValueError(f"{text!r} means {text} megapixels; write {text}x{text} for an edge in pixels")
        edge = round(math.sqrt(number * 1e6) / 64) * 64 if number < MEGAPIXELS_BELOW else int(number)
        size = edge, edge
    else:
        raise ValueError(f"{text!r} is neither a size nor WIDTHxHEIGHT")
    if min(size) < SMALLEST_PX or max(size) > LARGEST_PX or any(edge % EDGE_MULTIPLE for edge in size):
        raise ValueError(f"{text!r} has edges that are not multiples of {EDGE_MULTIPLE} from {SMALLEST_PX} to {LARGEST_PX}")
    return size
