"""Which of many similar proofs `make test` has. The others are marked slow."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytest

OFTEN = ("flux", "pixart_sigma", "sdxl", "z_image")
"""Families that stand for the others where a proof is the same for all: two streams, one stream, a UNet, prompts without padding."""


COMPILED = ("int4-quanto", "int2-quanto")
"""Types of quanto that compile a program when they are first used, which takes a minute of a processor in a new environment."""


def slow(values: Iterable[Any]) -> list[Any]:
    """The values as parameters of slow tests."""
    return [pytest.param(value, marks=pytest.mark.slow) for value in values]


def first_fast(values: Sequence[Any], count: int = 1) -> list[Any]:
    """The first ``count`` values for the fast tests, and the others for the slow ones."""
    return [*values[:count], *slow(values[count:])]


def first_rows_fast(rows: Iterable[Sequence[Any]], count: int = 1) -> list[Any]:
    """As ``first_fast``, of rows with a value for each of several parameters."""
    return [pytest.param(*row, marks=() if place < count else pytest.mark.slow) for place, row in enumerate(rows)]


def compiled_slow(precisions: Iterable[str]) -> list[Any]:
    """The precisions for the fast tests, and those that compile a program for the slow ones."""
    return [pytest.param(one, marks=pytest.mark.slow) if one in COMPILED else one for one in precisions]


def often(values: Iterable[Any], family: Callable[[Any], str] = str) -> list[Any]:
    """The values of the families in ``OFTEN`` for the fast tests, and those of the others for the slow ones.

    ``family``: the family that a value is of.
    """
    return [value if family(value) in OFTEN else pytest.param(value, marks=pytest.mark.slow) for value in values]
