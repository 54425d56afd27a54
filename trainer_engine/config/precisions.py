"""Every number type that a run may choose for weights or arithmetic, one row each. Options, preflight and engine read this table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from types import MappingProxyType
from typing import Any

from trainer_engine.config.optimizers import OPTIMIZERS


@dataclass(frozen=True, kw_only=True)
class Precision:
    """What is true of one number type."""

    name: str
    weight_bytes: float
    """Bytes of one weight, including its share of the scales of a quantised type."""
    library_name: str
    """Name of the type in the library that implements it."""
    library: str = ""
    """Library that quantises: a key of ``LIBRARIES``. Empty for a type of torch."""
    packages: tuple[str, ...] = ()
    """Modules that must be installed beyond the dependencies of this project."""
    compute_devices: tuple[str, ...] | None = None
    """Types of devices that train with arithmetic of this type; None for all."""
    missing_on: tuple[str, ...] = ()
    """Types of devices that cannot hold numbers of this type."""
    capability: tuple[int, int] = (0, 0)
    """Smallest compute capability of an NVIDIA GPU."""
    why_devices: str = ""
    """Why only some devices or GPUs can hold it, as the second half of a sentence."""
    with_activations: str = ""
    """Name of the type that rounds the inputs of layers, too (``quantize_activations``); its own name if it does so already."""

    @property
    def is_quantised(self) -> bool:
        """Whether weights of this type are frozen: they cannot be trained, and adapters that need exact weights refuse them."""
        return bool(self.library)

    @property
    def takes_convolutions(self) -> bool:
        """Whether convolutions are quantised, or linear layers only."""
        return self.library == "quanto"

    @property
    def missing_packages(self) -> tuple[str, ...]:
        """The ``packages`` that are not installed here. Nothing is imported."""
        return tuple(package for package in self.packages if find_spec(package) is None)


EXTRAS: Mapping[str, str] = MappingProxyType({"torchao": "torchao", "bitsandbytes": "bnb", "sdnq": "sdnq"})
"""Package -> extra of this project that installs it."""


def _quanto(name: str, weight_bytes: float, library_name: str, **facts: Any) -> Precision:
    return Precision(name=f"{name}-quanto", weight_bytes=weight_bytes, library_name=library_name, library="quanto", **facts)


def _torchao(name: str, weight_bytes: float, library_name: str, **facts: Any) -> Precision:
    facts.setdefault("packages", ("torchao",))
    return Precision(name=f"{name}-torchao", weight_bytes=weight_bytes, library_name=library_name, library="torchao", **facts)


SDNQ_BYTES: Mapping[str, float] = MappingProxyType(
    {
        "int8": 1.01,
        "uint8": 1.02,
        "int16": 2.01,
        "uint16": 2.02,
        "fp16": 2.01,
        "fp8": 1.01,
        "int6": 0.766,
        "int5": 0.657,
        "uint5": 0.688,
        "uint4": 0.625,
        "uint3": 0.625,
        "uint2": 0.75,
    }
)
"""Type of SDNQ -> bytes of one weight with the group size that the library chooses for it."""
NO_FLOAT8 = "Metal has no 8-bit floating-point numbers"
NO_INT_PRODUCT = "PyTorch multiplies 8-bit integers on CPUs and NVIDIA GPUs only"
NO_FLOAT8_PRODUCT = "8-bit floating-point products need compute capability 8.9 (Ada, Hopper or newer)"
ON_GPU_ONLY = ("cpu", "mps")

_ROWS: tuple[Precision, ...] = (
    Precision(name="bf16", weight_bytes=2, library_name="bfloat16"),
    Precision(name="fp16", weight_bytes=2, library_name="float16", compute_devices=("cuda",)),
    Precision(name="fp32", weight_bytes=4, library_name="float32"),
    _quanto("int8", 1.01, "qint8"),
    _quanto("int4", 0.53, "qint4"),
    _quanto("int2", 0.28, "qint2"),
    _quanto("fp8", 1.01, "qfloat8", missing_on=("mps",), why_devices=NO_FLOAT8),
    _quanto("fp8uz", 1.01, "qfloat8_e4m3fnuz", missing_on=("mps",), why_devices=NO_FLOAT8),
    _torchao("int8", 1.01, "Int8WeightOnlyConfig", with_activations="int8dq-torchao"),
    _torchao(
        "int8dq",
        1.01,
        "Int8DynamicActivationInt8WeightConfig",
        missing_on=("mps",),
        capability=(8, 0),
        why_devices=NO_INT_PRODUCT,
        with_activations="int8dq-torchao",
    ),
    # torchao keeps these 4-bit weights in 8 bits outside of ExecuTorch: they take as much memory as int8-torchao.
    _torchao(
        "int8dq-int4",
        1.1,
        "Int8DynamicActivationIntxWeightConfig",
        missing_on=("mps",),
        why_devices=NO_INT_PRODUCT,
        with_activations="int8dq-int4-torchao",
    ),
    _torchao(
        "int4",
        0.53,
        "Int4WeightOnlyConfig",
        missing_on=ON_GPU_ONLY,
        capability=(8, 0),
        why_devices="its kernel for packed 4-bit weights is written for NVIDIA GPUs of compute capability 8.0 or newer",
    ),
    _torchao("fp8wo", 1.01, "Float8WeightOnlyConfig", missing_on=("mps",), why_devices=NO_FLOAT8, with_activations="fp8-torchao"),
    _torchao(
        "fp8",
        1.01,
        "Float8DynamicActivationFloat8WeightConfig",
        missing_on=ON_GPU_ONLY,
        capability=(8, 9),
        why_devices=NO_FLOAT8_PRODUCT,
        with_activations="fp8-torchao",
    ),
    _torchao(
        "fp8-int4",
        0.53,
        "Float8DynamicActivationInt4WeightConfig",
        packages=("torchao", "mslk"),
        missing_on=ON_GPU_ONLY,
        capability=(9, 0),
        why_devices="the kernels of mslk need compute capability 9.0 (Hopper or newer)",
        with_activations="fp8-int4-torchao",
    ),
    Precision(name="nf4-bnb", weight_bytes=0.5625, library_name="nf4", library="bnb", packages=("bitsandbytes",), missing_on=("mps",)),
    Precision(
        name="fp8-native", weight_bytes=1.01, library_name="float8_e4m3fn", library="float8", missing_on=("mps",), why_devices=NO_FLOAT8
    ),
    *(
        Precision(name=f"{name}-sdnq", weight_bytes=weight_bytes, library_name=name, library="sdnq", packages=("sdnq",))
        for name, weight_bytes in SDNQ_BYTES.items()
    ),
)

PRECISIONS: Mapping[str, Precision] = MappingProxyType({row.name: row for row in _ROWS})
QUANTISED = tuple(row.name for row in _ROWS if row.is_quantised)
LOADED = tuple(row.name for row in _ROWS if not row.is_quantised)
"""Types that weights can be loaded in and trained in."""
ANY_FAMILY = tuple(row.name for row in _ROWS if row.is_quantised and row.library != "quanto")
"""Quantised types that are available for the base of every family."""


def available_on(device: str) -> tuple[str, ...]:
    """Returns the quantised types that are installed here and that a device of this type can hold."""
    return tuple(row.name for row in _ROWS if row.is_quantised and device not in row.missing_on and not row.missing_packages)


def compute_precision(mixed_precision: str) -> Precision:
    """Returns the type of the arithmetic; ``no`` is float32."""
    return PRECISIONS["fp32" if mixed_precision == "no" else mixed_precision]


def trained_precision(optimizer: str, mixed_precision: str) -> Precision:
    """Returns the type in which trained weights are stored: float32, unless the optimizer is made for bfloat16 weights."""
    return PRECISIONS["bf16" if mixed_precision == "bf16" and OPTIMIZERS[optimizer].stores_bfloat16 else "fp32"]


def frozen_precision(mixed_precision: str, base_model_default_dtype: str) -> Precision:
    """Returns the type in which frozen weights that are not quantised are stored."""
    return PRECISIONS["fp32"] if base_model_default_dtype == "fp32" else compute_precision(mixed_precision)


def activated(name: str, *, quantize_activations: bool) -> str:
    """Returns the type that is used: with ``quantize_activations``, the one that rounds the inputs of layers as well."""
    return PRECISIONS[name].with_activations or name if quantize_activations and name in PRECISIONS else name
