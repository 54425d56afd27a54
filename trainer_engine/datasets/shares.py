"""The share of an epoch's batches that comes from each dataset."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple


class SetNumbers(NamedTuple):
    """The numbers that decide how often batches of a dataset are chosen."""

    batches: int
    """Batches in an epoch."""
    weight: float
    """The dataset's ``probability``."""
    side: int = 0
    """The side of a slider that the dataset is on: 1, -1, or 0 for neither."""


class Share(NamedTuple):
    """The share of batches that come from a dataset, from 0 to 1."""

    at_start: float
    """Share of the first batches of an epoch, and therefore of a run that is much shorter than an epoch."""
    of_epoch: float
    """Share of a complete epoch, in which every sample is seen ``repeats + 1`` times whatever the weights are."""

    def as_dict(self) -> dict[str, float | str]:
        """Returns the share as ``validate`` reports it."""
        return {"at_start": round(self.at_start, 6), "of_epoch": round(self.of_epoch, 6), "text": self.text}

    @property
    def text(self) -> str:
        if math.isclose(self.at_start, self.of_epoch):
            return f"{100 * self.of_epoch:.3g} % of the batches"
        return f"{100 * self.at_start:.3g} % of the batches at the start of an epoch, {100 * self.of_epoch:.3g} % over the complete epoch"


def shares(sets: Sequence[SetNumbers], *, by_size: bool) -> list[Share]:
    """Returns the share of each dataset, 0 for one without batches. ``by_size``: whether larger datasets are chosen more often.

    The sides of a slider take turns, so each has the same share at the start.
    """
    weights = [one.weight * (one.batches if by_size else 1) if one.batches else 0.0 for one in sets]
    batches, totals = sum(one.batches for one in sets), dict.fromkeys((one.side for one in sets), 0.0)
    for one, weight in zip(sets, weights, strict=True):
        totals[one.side] += weight
    sides = sum(1 for total in totals.values() if total)
    parts = [weight / totals[one.side] / sides if weight else 0.0 for one, weight in zip(sets, weights, strict=True)]
    return [Share(part, one.batches / batches if batches else 0.0) for part, one in zip(parts, sets, strict=True)]
