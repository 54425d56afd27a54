"""Small Flux models for the tests of this folder."""

from __future__ import annotations

from typing import Any

from tests.helpers.models import tiny_model, tiny_of
from trainer_engine.families.flux.family import Flux


def tiny_flux(flavour: str = "dev", **values: Any) -> Flux:
    """The micro model of a flavour on the CPU."""
    model = str(values.pop("model", None) or tiny_model("flux", flavour=flavour))
    return tiny_of(Flux, model, model_flavour=flavour, **values)
