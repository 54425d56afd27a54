"""Reduces long curves to fewer points, keeps their extremes, and smooths them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]
MOST_BINS = 1_000
SHARE_SMOOTHED = 0.02
"""Each point of the smoothed curve is the mean over this share of the run."""


def in_order(steps: Numbers, *values: Numbers) -> tuple[Numbers, ...]:
    """Sort by step and keep the last value of each step. A resumed run reports some steps twice."""
    if len(steps) < 2 or bool(np.all(np.diff(steps) > 0)):
        return steps, *values
    unique, last = np.unique(steps[::-1], return_index=True)
    places = len(steps) - 1 - last
    return unique, *(value[places] for value in values)


def thinned(steps: Numbers, values: Numbers, bins: int = MOST_BINS) -> tuple[Numbers, Numbers]:
    """The smallest and largest value of each of ``bins`` equal parts, in order; a short curve stays complete. NaN is dropped."""
    finite = np.isfinite(values)
    steps, values = steps[finite], values[finite]
    if len(steps) <= 2 * bins:
        return steps, values
    edges = np.linspace(0, len(steps), bins + 1).astype(int)
    kept = set()
    for start, end in zip(edges[:-1], edges[1:], strict=True):
        part = values[start:end]
        kept |= {start + int(part.argmin()), start + int(part.argmax())}
    places = sorted(kept | {0, len(steps) - 1})
    return steps[places], values[places]


def window_of(count: int) -> int:
    """Number of steps that a point of the smoothed curve is the mean of."""
    return max(5, round(count * SHARE_SMOOTHED))


def smoothed(values: Numbers, window: int) -> Numbers:
    """The mean of the last ``window`` values, of fewer at the beginning. NaN is ignored."""
    finite = np.isfinite(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(finite, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(finite)])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - window)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((sums[ends] - sums[starts]) / (counts[ends] - counts[starts]))
