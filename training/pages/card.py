"""What a first adapter of each model needs, and how it fits on a card: the choices of the page ``/new``."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Any

from trainer_engine.config.families import specs
from trainer_engine.config.family_spec import FamilySpec
from training.engine import hardware
from training.preflight.families_page import licence_of
from training.preflight.memory_table import phases_of
from training.preflight.on_device import CAPTIONS, LATENTS
from training.preflight.phases import peak_of

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
WORDS = MappingProxyType({"no_change": "16 bits", "int8-quanto": "8 bits", "nf4-bnb": "4 bits"})
PRECISIONS = (("no_change", "no_change"), ("no_change", "int8-quanto"), ("int8-quanto", "int8-quanto"), ("nf4-bnb", "nf4-bnb"))
"""Types of the base and of the text encoders, the most exact ones first."""


@dataclass(frozen=True)
class Fit:
    """Number types, and the memory that the phase with the highest need takes with them."""

    options: Mapping[str, Any]
    gib: float

    @property
    def base(self) -> str:
        return str(self.options["base_model_precision"])


@dataclass(frozen=True)
class ModelChoice:
    """Weights that an adapter can be trained on with images alone."""

    family: str
    title: str
    flavour: str
    repository: str
    licence: str
    billions: float
    fits: tuple[Fit, ...]
    """The most exact one first; each takes less than those before it."""

    @property
    def key(self) -> str:
        return f"{self.family}/{self.flavour}"

    @property
    def least(self) -> float:
        """The smallest card in GiB, with what the driver takes."""
        return self.fits[-1].gib + OVERHEAD_GIB

    @property
    def text(self) -> str:
        needs = {fit.base: fit.gib for fit in self.fits}
        return ", ".join(f"{gib:.0f} GB in {WORDS[base]}" for base, gib in needs.items())


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
        repository, licence = spec.flavours[flavour], licence_of(spec, flavour) or "see its page"
        billions = spec.parameters.get(flavour, 0) / 1e9
        yield ModelChoice(spec.name, spec.title, flavour, repository, licence, billions, tuple(_fits(spec, flavour)))


def _fits(spec: FamilySpec, flavour: str) -> Iterator[Fit]:
    """Quantised text encoders are tried only where encoding captions decides, and one image at a time where encoding images does."""
    encoders = [f"text_encoder_{number}_precision" for number, _ in enumerate(spec.prompts.encoders_of(flavour).names, start=1)]
    least, decides = math.inf, ""
    for base, other in PRECISIONS:
        if base not in ("no_change", *spec.adapters.base_precisions) or (base != other and decides != CAPTIONS):
            continue
        options: dict[str, Any] = {"base_model_precision": base}
        peak = peak_of(phases_of(spec, flavour, options))
        if peak.name == LATENTS:
            if peak.memory.middle / GIB < least:
                least = peak.memory.middle / GIB
                yield Fit(MappingProxyType(dict(options)), least)
            options["vae_batch_size"] = 1
            peak = peak_of(phases_of(spec, flavour, options))
        if peak.name == CAPTIONS and other != "no_change":
            options |= dict.fromkeys(encoders, other)
            peak = peak_of(phases_of(spec, flavour, options))
        gib = peak.memory.middle / GIB
        if gib < least:
            least, decides = gib, peak.name
            yield Fit(MappingProxyType(options), gib)


def find_choice(key: str) -> ModelChoice | None:
    """The choice with this key, or None."""
    return next((choice for choice in model_choices() if choice.key == key), None)


def options_for(choice: ModelChoice, gib: int) -> dict[str, Any] | None:
    """The options with which a model fits on a card of ``gib``, the best precision that does; None if none does."""
    if gib == PROCESSOR:
        return dict(ON_PROCESSOR)
    fit = next((fit for fit in choice.fits if fit.gib + OVERHEAD_GIB <= gib), None)
    return None if fit is None else {**fit.options, "gradient_checkpointing": True}


def card_here() -> int:
    """The memory of the smallest GPU of this machine, as one of ``CARDS``; ``PROCESSOR`` without one."""
    found = [gpu.total_bytes for gpu in hardware.DRIVER.gpus()]
    if not found:
        return PROCESSOR
    # A card of 24 GB reports a little less.
    return max((card for card in CARDS if card <= min(found) / GIB + 1), default=CARDS[0])
