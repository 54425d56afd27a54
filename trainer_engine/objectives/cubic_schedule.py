"""A distribution of timesteps whose density is a smooth curve through given values."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

POINTS = 4097
"""Points at which the density is computed; the cumulative distribution is linear between them."""
Floats = NDArray[np.float64]


class CubicSchedule:
    """Samples sigma in [0, 1] with a density through ``densities`` at even distances.

    Between them it is the monotone cubic Hermite curve of Fritsch and Butland, 1984, "A Method for Constructing Local Monotone Piecewise
    Cubic Interpolants": it never goes below or above the values that it connects, so that it stays a density.
    """

    def __init__(self, densities: Sequence[float]) -> None:
        """``densities``: at least two numbers that are not negative, one of them above 0."""
        self.grid: Floats = np.linspace(0.0, 1.0, POINTS)
        values = np.asarray(densities, dtype=np.float64)
        density = _curve(values / values.max(), self.grid * (len(values) - 1))
        area = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1])])
        self.cumulative: Floats = area / area[-1]

    def at(self, share: float) -> float:
        """The sigma below which the share in [0, 1) of all timesteps lies."""
        return float(np.interp(share, self.cumulative, self.grid))


def _curve(values: Floats, places: Floats) -> Floats:
    """The curve through ``values`` at 0, 1, 2, ..., at each of ``places``."""
    slopes = _slopes(values)
    left = np.minimum(places.astype(int), len(values) - 2)
    t = places - left
    curve: Floats = values[left] * (1 + 2 * t) * (1 - t) ** 2 + slopes[left] * t * (1 - t) ** 2
    curve += values[left + 1] * (3 - 2 * t) * t**2 - slopes[left + 1] * (1 - t) * t**2
    return np.maximum(curve, 0.0)


def _slopes(values: Floats) -> Floats:
    """The derivative at each value, at distances of 1: the harmonic mean of the slopes beside it, 0 at a turning point."""
    steps = np.diff(values)
    if len(steps) == 1:
        return np.repeat(steps, 2)
    before, after = steps[:-1], steps[1:]
    agree = before * after > 0
    inner = np.zeros_like(before)
    inner[agree] = 2 * before[agree] * after[agree] / (before[agree] + after[agree])
    return np.concatenate([[_end(steps[0], steps[1])], inner, [_end(steps[-1], steps[-2])]])


def _end(nearest: float, next_one: float) -> float:
    """The derivative at an end: that of the parabola through three values, limited so that the curve stays monotone."""
    slope = (3 * nearest - next_one) / 2
    if slope * nearest <= 0:
        return 0.0
    return 3 * nearest if nearest * next_one <= 0 and abs(slope) > 3 * abs(nearest) else slope
