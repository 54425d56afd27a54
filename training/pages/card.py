"""What a first adapter of each model needs, and how it fits on a card: the choices of the page ``/new``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Any

from trainer_engine.config.families import specs
from trainer_engine.config.family_spec import FamilySpec
from training.engine import hardware
from training.preflight.families_page import BASES, licence_of, memory_gib

GIB = 1 << 30
CARDS = (6, 8, 10, 12, 16, 20, 24, 32, 40, 48, 80, 96, 141)
"""Sizes of cards in GiB that people have."""
PROCESSOR = 0
"""In place of a card: without a GPU, a run uses the processor."""
OVERHEAD_GIB = 1.5
"""What driver, libraries and allocator take beside the estimate."""
ON_PROCESSOR: Mapping[str, str] = MappingProxyType(
    {"mixed_precision": "no", "base_model_precision": "no_change", "optimizer": "torch-adamw"}
)
"""A processor computes in float32; most are very slow at bfloat16."""
WORDS = MappingProxyType({"no_change": "as it is", "int8-quanto": "8 bits", "nf4-bnb": "4 bits"})


@dataclass(frozen=True)
class ModelChoice:
    """Weights that an adapter can be trained on with images alone."""

    family: str
    title: str
    flavour: str
    repository: str
    licence: str
    billions: float
    needs: Mapping[str, float]
    """``base_model_precision`` -> estimated GiB, in the order of their quality."""

    @property
    def key(self) -> str:
        return f"{self.family}/{self.flavour}"

    @property
    def least(self) -> float:
        """The smallest card in GiB, with what the driver takes."""
        return min(self.needs.values()) + OVERHEAD_GIB

    @property
    def text(self) -> str:
        return ", ".join(f"{need:.0f} GB {WORDS[base]}" for base, need in self.needs.items())


@cache
def model_choices() -> tuple[ModelChoice, ...]:
    """Every choice, a family's default flavour first."""
    return tuple(choice for spec in specs().values() for choice in _choices(spec))


def _choices(spec: FamilySpec) -> Iterator[ModelChoice]:
    if "lora" not in spec.model_types:
        return
    for flavour in sorted(spec.flavours, key=lambda name: name != spec.default_flavour):
        if flavour in spec.needs_references or spec.animates(flavour):
            continue
        estimates = memory_gib(spec, flavour)
        needs = {base: need for name, base in BASES.items() if (need := estimates[name]) is not None}
        repository, licence = spec.flavours[flavour], licence_of(spec, flavour) or "see its page"
        billions = spec.parameters.get(flavour, 0) / 1e9
        yield ModelChoice(spec.name, spec.title, flavour, repository, licence, billions, MappingProxyType(needs))


def find_choice(key: str) -> ModelChoice | None:
    """The choice with this key, or None."""
    return next((choice for choice in model_choices() if choice.key == key), None)


def options_for(choice: ModelChoice, gib: int) -> dict[str, Any] | None:
    """The options with which a model fits on a card of ``gib``, the best precision that does; None if none does."""
    if gib == PROCESSOR:
        return dict(ON_PROCESSOR)
    base = next((base for base, need in choice.needs.items() if need + OVERHEAD_GIB <= gib), None)
    return None if base is None else {"base_model_precision": base, "gradient_checkpointing": True}


def card_here() -> int:
    """The memory of the smallest GPU of this machine, as one of ``CARDS``; ``PROCESSOR`` without one."""
    found = [gpu.total_bytes for gpu in hardware.DRIVER.gpus()]
    if not found:
        return PROCESSOR
    # A card of 24 GB reports a little less.
    return max((card for card in CARDS if card <= min(found) / GIB + 1), default=CARDS[0])
