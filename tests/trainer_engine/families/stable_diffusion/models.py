"""Small Stable Diffusion models for the tests of this folder."""

from __future__ import annotations

from typing import Any

import torch

from tests.helpers.models import options_with, tiny_model
from trainer_engine.families.common.stable_diffusion import StableDiffusion
from trainer_engine.families.load import load_family
from trainer_engine.runtime.devices import resolve_devices


def tiny_sd(family: str = "sd1x", **values: Any) -> StableDiffusion:
    """The micro model of sd1x or sd2x on the CPU."""
    model = str(values.pop("model", None) or tiny_model(family))
    options = options_with(model_family=family, pretrained_model_name_or_path=model, **values)
    loaded = load_family(options, resolve_devices(options, torch.device("cpu")))
    assert isinstance(loaded, StableDiffusion)
    return loaded
