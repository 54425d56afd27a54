"""Small Flux models for the tests of this folder."""

from __future__ import annotations

from typing import Any

import torch

from tests.helpers.models import options_with, tiny_model
from trainer_engine.families.flux.family import Flux
from trainer_engine.families.load import load_family
from trainer_engine.runtime.devices import resolve_devices


def tiny_flux(flavour: str = "dev", **values: Any) -> Flux:
    """The micro model of a flavour on the CPU."""
    model = str(values.pop("model", None) or tiny_model("flux", flavour=flavour))
    options = options_with(model_family="flux", model_flavour=flavour, pretrained_model_name_or_path=model, **values)
    family = load_family(options, resolve_devices(options, torch.device("cpu")))
    assert isinstance(family, Flux)
    return family
