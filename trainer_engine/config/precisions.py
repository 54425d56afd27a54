"""Every number type that a run may choose for weights or arithmetic, one row each. Options, preflight and engine read this table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from trainer_engine.config.optimizers import OPTIMIZERS


@dataclass(frozen=True, kw_only=True)
class Precision:
    """What is true of one number type."""

    name: str
    weight_bytes: float
    """Bytes of one weight, including its share of the scales of a quantised type."""
    library_name: str
    """Name of the type in torch, or in ``optimum.quanto.qtypes`` for a quantised type."""
    is_quantised: bool = False
    """Whether weights of this type are frozen: they cannot be trained, and adapters that need exact weights refuse them."""
    compute_devices: tuple[str, ...] | None = None
    """Types of devices that train with arithmetic of this type; None for all."""
    missing_on: tuple[str, ...] = ()
    """Types of devices that cannot hold numbers of this type."""


_ROWS = (
    Precision(name="bf16", weight_bytes=2, library_name="bfloat16"),
    Precision(name="fp16", weight_bytes=2, library_name="float16", compute_devices=("cuda",)),
    Precision(name="fp32", weight_bytes=4, library_name="float32"),
    Precision(name="int8-quanto", weight_bytes=1.01, library_name="qint8", is_quantised=True),
    Precision(name="int4-quanto", weight_bytes=0.53, library_name="qint4", is_quantised=True),
    Precision(name="int2-quanto", weight_bytes=0.28, library_name="qint2", is_quantised=True),
    Precision(name="fp8-quanto", weight_bytes=1.01, library_name="qfloat8", is_quantised=True, missing_on=("mps",)),
)

PRECISIONS: Mapping[str, Precision] = MappingProxyType({row.name: row for row in _ROWS})
QUANTISED = tuple(row.name for row in _ROWS if row.is_quantised)
LOADED = tuple(row.name for row in _ROWS if not row.is_quantised)
"""Types that weights can be loaded in and trained in."""


def compute_precision(mixed_precision: str) -> Precision:
    """Returns the type of the arithmetic; ``no`` is float32."""
    return PRECISIONS["fp32" if mixed_precision == "no" else mixed_precision]


def trained_precision(optimizer: str, mixed_precision: str) -> Precision:
    """Returns the type in which trained weights are stored: float32, unless the optimizer is made for bfloat16 weights."""
    return PRECISIONS["bf16" if mixed_precision == "bf16" and OPTIMIZERS[optimizer].stores_bfloat16 else "fp32"]


def frozen_precision(mixed_precision: str, base_model_default_dtype: str) -> Precision:
    """Returns the type in which frozen weights that are not quantised are stored."""
    return PRECISIONS["fp32"] if base_model_default_dtype == "fp32" else compute_precision(mixed_precision)
