"""Which part of the batches each dataset gives. The sampler draws by the same numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple


class SetNumbers(NamedTuple):
    """What decides how often a dataset is drawn."""

    batches: int
    """In an epoch."""
    weight: float
    """``probability``."""


class Share(NamedTuple):
    """Parts of 1."""

    at_start: float
    """Of the first batches of an epoch, and so of a run that is much shorter than one."""
    of_epoch: float
    """Of a whole epoch: every sample is seen ``repeats + 1`` times, whatever the weights are."""

    def as_dict(self) -> dict[str, float | str]:
        """As ``validate`` answers."""
        return {"at_start": round(self.at_start, 6), "of_epoch": round(self.of_epoch, 6), "text": self.text}

    @property
    def text(self) -> str:
        if math.isclose(self.at_start, self.of_epoch):
            return f"{100 * self.of_epoch:.3g} % of the batches"
        return f"{100 * self.at_start:.3g} % of the batches at the start of an epoch, {100 * self.of_epoch:.3g} % over the whole epoch"


def shares(sets: Sequence[SetNumbers], *, by_size: bool) -> list[Share]:
    """The share of each dataset; 0 for one without batches."""
    weights = [one.weight * (one.batches if by_size else 1) if one.batches else 0.0 for one in sets]
    total, batches = sum(weights), sum(one.batches for one in sets)
    parts = [weight / total if total else 0.0 for weight in weights]
    return [Share(part, one.batches / batches if batches else 0.0) for part, one in zip(parts, sets, strict=True)]
