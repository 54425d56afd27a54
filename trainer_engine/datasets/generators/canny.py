"""Edges of an image after Canny (1986, "A Computational Approach to Edge Detection"): white lines of one pixel on black."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from trainer_engine.config.option import OptionGroup, option
from trainer_engine.datasets.generators.base import Generator, Wrong

if TYPE_CHECKING:
    from PIL import Image

SIGMA = 1.0
"""Standard deviation in pixels of the Gaussian that smooths the image first."""
TAN_22_5, TAN_67_5 = 0.41421356, 2.41421356
LARGEST = 1443.0
"""Largest gradient of an 8-bit image with the Sobel operator: 4 x 255 in both directions."""


class CannyFields(OptionGroup):
    """Fields of the generator of edges."""

    low_threshold: float = option(50, "Gradient above which a pixel continues an edge. Sobel operator on 8 bits.", ge=0, le=LARGEST)
    high_threshold: float = option(100, "Gradient above which a pixel starts an edge.", ge=0, le=LARGEST)


def contradictions(fields: CannyFields) -> Iterator[Wrong]:
    if fields.low_threshold > fields.high_threshold:
        yield Wrong("low_threshold", f"is above high_threshold={fields.high_threshold:g}", f"at most {fields.high_threshold:g}")


def make(image: Image.Image, fields: CannyFields, seed: int) -> Image.Image:
    """The edges of the brightness, in mode RGB."""
    import numpy as np
    from PIL import Image

    grey = np.asarray(image.convert("L"), dtype=np.float32)
    found = edges(grey, fields.low_threshold, fields.high_threshold)
    return Image.fromarray(found.astype(np.uint8) * 255).convert("RGB")


def edges(grey: Any, low: float, high: float) -> Any:
    """(H, W) float32 in [0, 255] -> (H, W) bool, True on edges."""
    import numpy as np

    right, down = _gradient(_smoothed(grey))
    magnitude = np.hypot(right, down)
    thin = _thinned(magnitude, right, down)
    return _connected(thin & (magnitude >= low), thin & (magnitude >= high))


def _smoothed(grey: Any) -> Any:
    """Convolution with a Gaussian of ``SIGMA``, cut off at three of it; borders are repeated."""
    import numpy as np

    radius = int(3 * SIGMA)
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / SIGMA) ** 2).astype(np.float32)
    weights /= weights.sum()
    for axis in (0, 1):
        padded = np.pad(grey, [(radius, radius) if one == axis else (0, 0) for one in (0, 1)], mode="edge")
        parts = (weight * np.take(padded, range(place, place + grey.shape[axis]), axis) for place, weight in enumerate(weights))
        grey = sum(parts)
    return grey


def _gradient(grey: Any) -> tuple[Any, Any]:
    """The Sobel operator, to the right and down."""
    import numpy as np

    padded = np.pad(grey, 1, mode="edge")
    across = padded[:-2] + 2 * padded[1:-1] + padded[2:]
    along = padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]
    return across[:, 2:] - across[:, :-2], along[2:] - along[:-2]


def _thinned(magnitude: Any, right: Any, down: Any) -> Any:
    """Where the gradient is the largest along its own direction, rounded to 45 degrees. Of two equal ones the first counts."""
    import numpy as np

    height, width = magnitude.shape
    padded = np.pad(magnitude, 1)
    flat, steep = np.abs(down) <= TAN_22_5 * np.abs(right), np.abs(down) > TAN_67_5 * np.abs(right)
    falling = (right * down > 0) & ~flat & ~steep
    kept = np.zeros(magnitude.shape, dtype=bool)
    rising = ~(flat | steep | falling)
    for chosen, (y, x) in ((flat, (0, 1)), (steep, (1, 0)), (falling, (1, 1)), (rising, (1, -1))):
        before = padded[1 - y : 1 - y + height, 1 - x : 1 - x + width]
        after = padded[1 + y : 1 + y + height, 1 + x : 1 + x + width]
        kept |= chosen & (magnitude > before) & (magnitude >= after)
    return kept


def _connected(weak: Any, strong: Any) -> Any:
    """The pixels of ``weak`` that touch one of ``strong``, directly or through others (hysteresis)."""
    import numpy as np

    height, width = weak.shape
    stride = width + 2
    waiting = np.pad(weak | strong, 1).ravel()
    found = np.zeros_like(waiting)
    neighbours = np.array([y * stride + x for y in (-1, 0, 1) for x in (-1, 0, 1) if y or x])
    front = np.flatnonzero(np.pad(strong, 1))
    while front.size:
        found[front] = True
        waiting[front] = False
        reached = (front[:, None] + neighbours).ravel()
        front = np.unique(reached[waiting[reached]])
    return found.reshape(height + 2, stride)[1:-1, 1:-1]


GENERATORS = (
    Generator(
        name="canny",
        help="the edges of the image (Canny, 1986).",
        synonyms=("edges",),
        fields=CannyFields,
        make=make,
        contradictions=contradictions,
    ),
)
