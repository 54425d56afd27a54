"""Arguments that ``optimizer_config`` may set, by library and update rule, with the values that the optimizer can work with."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

LARGEST = 1e9
"""Larger numbers overflow float32 within some steps."""
SMALLEST = 1e-30
"""Smallest value of a number that must be above 0."""


@dataclass(frozen=True)
class Argument:
    """The type and the range of one argument."""

    kind: type[bool | int | float]
    low: float = 0
    high: float = LARGEST

    def takes(self, value: object) -> bool:
        """Whether the optimizer can work with the value. A whole number may be written as ``6.0``."""
        if self.kind is bool or isinstance(value, bool):
            return self.kind is bool and isinstance(value, bool)
        if not isinstance(value, (int, float)) or not self.low <= value <= self.high:
            return False
        return self.kind is float or math.floor(value) == value

    @property
    def expected(self) -> str:
        if self.kind is bool:
            return "true or false"
        return f"a {'whole number' if self.kind is int else 'number'} from {self.low:g} to {self.high:g}"


Arguments = Mapping[str, Argument]
FLAG, NUMBER, COUNT = Argument(bool), Argument(float), Argument(int, low=1)
ABOVE_ZERO, SHARE, EXPONENT = Argument(float, low=SMALLEST), Argument(float, high=1), Argument(float, high=10)
BELOW_ONE = Argument(float, high=0.9999)

EVERY: Arguments = {"weight_decay": NUMBER}
TORCH: Arguments = {**EVERY, "eps": NUMBER, "maximize": FLAG, "foreach": FLAG}
TORCH_ADAM: Arguments = {**TORCH, "amsgrad": FLAG, "fused": FLAG}
TORCH_ADAGRAD: Arguments = {**TORCH, "lr_decay": NUMBER, "initial_accumulator_value": NUMBER, "fused": FLAG}
_ON_OR_OFF: Arguments = {"maximize": FLAG, "foreach": FLAG}
TORCH_SGD: Arguments = {**EVERY, "momentum": NUMBER, "dampening": NUMBER, "nesterov": FLAG, **_ON_OR_OFF, "fused": FLAG}
TORCH_ASGD: Arguments = {**EVERY, "lambd": NUMBER, "alpha": EXPONENT, "t0": NUMBER, **_ON_OR_OFF}
ADAFACTOR: Arguments = {**EVERY, "d": Argument(float, low=1), **_ON_OR_OFF}
OPTIMI_WITHOUT_EPS: Arguments = {
    **EVERY,
    "max_lr": ABOVE_ZERO,
    "decouple_lr": FLAG,
    "kahan_sum": FLAG,
    "foreach": FLAG,
    "triton": FLAG,
}
OPTIMI: Arguments = {**OPTIMI_WITHOUT_EPS, "eps": NUMBER}
OPTIMI_WD: Arguments = {**OPTIMI, "decouple_wd": FLAG}
OPTIMI_SGD: Arguments = {**OPTIMI_WITHOUT_EPS, "momentum": BELOW_ONE, "dampening": FLAG, "decouple_wd": FLAG, "torch_init": FLAG}
SCHEDULE_FREE: Arguments = {**EVERY, "eps": NUMBER, "r": EXPONENT, "weight_lr_power": EXPONENT, "foreach": FLAG}
PRODIGY: Arguments = {
    **EVERY,
    "eps": ABOVE_ZERO,
    "decouple": FLAG,
    "use_bias_correction": FLAG,
    "safeguard_warmup": FLAG,
    "d0": ABOVE_ZERO,
    "d_coef": ABOVE_ZERO,
}
LION_BNB: Arguments = {**EVERY, "min_8bit_size": COUNT, "percentile_clipping": COUNT, "block_wise": FLAG}
BNB: Arguments = {**LION_BNB, "eps": NUMBER}
