"""Every optimizer that a run may choose, one row each. The option, the rules, the engine and the memory estimate read this table."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal

from trainer_engine.config import optimizer_arguments as takes
from trainer_engine.config.optimizer_arguments import Arguments

Betas = tuple[float, ...]
ADAM: Betas = (0.9, 0.999)
LONG: Betas = (0.9, 0.99)

BLOCK_8BIT = 256
"""Numbers of 8-bit state that share one float32 scale (Dettmers et al., 2022)."""
MIN_8BIT_SIZE = 4096
"""bitsandbytes keeps the state of smaller weights in float32, unless ``min_8bit_size`` sets another limit."""
FLOAT32_BYTES = 4


@dataclass(frozen=True, kw_only=True)
class OptimizerSpec:
    """What is true of one optimizer."""

    name: str
    arguments: Arguments
    """Argument that ``optimizer_config`` may set -> its values; None leaves an argument to the optimizer."""
    betas: Betas | None = None
    """Default betas; None for an update rule without betas."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Arguments that differ from the defaults of the library."""
    moments: int
    """State tensors of the shape of a weight."""
    moments_with: Mapping[str, int] = field(default_factory=dict)
    """Argument -> state tensors that it adds when it is set."""
    is_factored: bool = False
    """Whether weights of two or more dimensions keep one row and one column in place of a tensor (Shazeer and Stern, 2018)."""
    state: Literal["as_weights", "float32", "8bit"] = "as_weights"
    """Number type of the state."""
    has_kahan: bool | None = None
    """Whether weights shorter than float32 get a compensation tensor by default; None for an optimizer without Kahan summation."""
    stores_bfloat16: bool = False
    """Whether ``mixed_precision=bf16`` stores the trained weights in bfloat16; other optimizers train float32 weights."""
    is_schedule_free: bool = False
    """Whether it replaces the learning-rate curve: after the warm-up the rate stays at its peak."""
    finds_rate: bool = False
    """Whether it finds the learning rate, and ``learning_rate`` only multiplies it."""
    reads_every_tensor: bool = False
    """Whether it reads numbers from the device for each tensor in each step, so that a GPU waits each time."""
    has_fused: bool = False
    """Whether one operator can update all weights."""
    is_paged: bool = False
    """Whether its state may leave the memory of the GPU for that of the host."""
    needs_gpu: bool = False
    package: str = ""
    """A library that is not a dependency of this project; empty where none is needed."""

    @property
    def can_release(self) -> bool:
        """Whether it can update one weight during the backward pass, as all optimizers of optimi can."""
        return self.has_kahan is not None

    def state_bytes(self, shape: Sequence[int], weight_bytes: int, settings: Mapping[str, Any]) -> int:
        """Bytes of state that one weight has after a step. ``settings`` is ``optimizer_config``; step counters are left out."""
        numbers = math.prod(shape)
        if self.is_factored and len(shape) > 1:
            return (numbers // shape[-1] + numbers // shape[-2]) * weight_bytes
        tensors = self.moments + sum(more for name, more in self.moments_with.items() if settings.get(name))
        if self.has_kahan is not None and weight_bytes < FLOAT32_BYTES and settings.get("kahan_sum", self.has_kahan) is not False:
            tensors += 1
        if self.state == "8bit" and numbers >= (settings.get("min_8bit_size") or MIN_8BIT_SIZE):
            return tensors * (numbers + FLOAT32_BYTES * -(-numbers // BLOCK_8BIT))
        return tensors * numbers * (weight_bytes if self.state == "as_weights" else FLOAT32_BYTES)


_DECAY = {"weight_decay": 0.01}


def _torch(name: str, **facts: Any) -> OptimizerSpec:
    return OptimizerSpec(**{"name": name, "arguments": takes.TORCH, "moments": 2, **facts})


def _optimi(name: str, **facts: Any) -> OptimizerSpec:
    return OptimizerSpec(**{"name": name, "arguments": takes.OPTIMI, "betas": LONG, "moments": 2, "has_kahan": True, **facts})


def _bitsandbytes(name: str, *, paged: bool = True, **facts: Any) -> Iterator[OptimizerSpec]:
    """One update rule with its state in 32 and in 8 bits, and with either paged out of the GPU where the library can."""
    plain = OptimizerSpec(
        **{"name": name, "arguments": takes.BNB, "betas": ADAM, "state": "float32", **facts}, needs_gpu=True, package="bitsandbytes"
    )
    for row in (plain, replace(plain, name=f"{plain.name}8bit", state="8bit")):
        yield row
        if paged:
            yield replace(row, name=f"{row.name}-paged", is_paged=True)


_ROWS: tuple[OptimizerSpec, ...] = (
    # Kahan summation keeps what rounding to bfloat16 takes from each update (Kahan, 1965).
    _optimi("adamw_bf16", defaults={**_DECAY, "eps": 1e-6}, betas=ADAM, stores_bfloat16=True),
    _torch("torch-adam", arguments=takes.TORCH_ADAM, betas=ADAM, moments_with={"amsgrad": 1}, has_fused=True),
    _torch(
        "torch-adamw", arguments=takes.TORCH_ADAM, betas=ADAM, defaults={**_DECAY, "eps": 1e-8}, moments_with={"amsgrad": 1}, has_fused=True
    ),
    _torch("torch-sgd", arguments=takes.TORCH_SGD, moments=0, moments_with={"momentum": 1}),
    _torch("torch-radam", arguments={**takes.TORCH, "decoupled_weight_decay": takes.FLAG}, betas=ADAM),
    _torch("torch-nadam", arguments={**takes.TORCH, "momentum_decay": takes.NUMBER, "decoupled_weight_decay": takes.FLAG}, betas=ADAM),
    _torch(
        "torch-rmsprop",
        arguments={**takes.TORCH, "alpha": takes.SHARE, "momentum": takes.NUMBER, "centered": takes.FLAG},
        moments=1,
        moments_with={"momentum": 1, "centered": 1},
    ),
    _torch("torch-adagrad", arguments=takes.TORCH_ADAGRAD, moments=1),
    _torch("torch-adadelta", arguments={**takes.TORCH, "rho": takes.SHARE}),
    _torch(
        "torch-adafactor",
        arguments=takes.ADAFACTOR,
        moments=1,
        is_factored=True,
        reads_every_tensor=True,
    ),
    _torch("torch-adamax", betas=ADAM),
    _torch("torch-asgd", arguments=takes.TORCH_ASGD, moments=1, reads_every_tensor=True),
    _optimi("optimi-adamw", defaults={**_DECAY, "eps": 1e-6}),
    _optimi("optimi-stableadamw", reads_every_tensor=True),
    _optimi("optimi-lion", arguments=takes.OPTIMI_WITHOUT_EPS, moments=1),
    _optimi("optimi-radam", arguments=takes.OPTIMI_WD),
    _optimi("optimi-ranger", arguments={**takes.OPTIMI_WD, "k": takes.COUNT, "alpha": takes.SHARE}, moments=3),
    _optimi("optimi-adan", arguments={**takes.OPTIMI, "adam_wd": takes.FLAG}, betas=(0.98, 0.92, 0.99), moments=4, has_kahan=False),
    _optimi("optimi-adam", arguments=takes.OPTIMI_WD),
    _optimi("optimi-sgd", arguments=takes.OPTIMI_SGD, betas=None, moments=0, moments_with={"momentum": 1}),
    OptimizerSpec(name="adamw_schedulefree", arguments=takes.SCHEDULE_FREE, betas=ADAM, moments=2, is_schedule_free=True),
    # Two moments, the first weights and the sum of the gradients.
    OptimizerSpec(name="prodigy", arguments=takes.PRODIGY, betas=ADAM, moments=4, finds_rate=True, reads_every_tensor=True),
    *_bitsandbytes("bnb-adagrad", betas=None, moments=1, paged=False),
    *_bitsandbytes("bnb-adam", moments=2, paged=False),
    *_bitsandbytes("bnb-adamw", moments=2),
    *_bitsandbytes("bnb-lion", arguments=takes.LION_BNB, betas=LONG, moments=1),
    *_bitsandbytes("bnb-ademamix", betas=(0.9, 0.999, 0.9999), moments=3),
)

OPTIMIZERS: Mapping[str, OptimizerSpec] = MappingProxyType({row.name: row for row in _ROWS})
