"""Small Stable Diffusion models for the tests of this folder."""

from __future__ import annotations

from typing import Any

from tests.helpers.models import tiny_family, tiny_model
from trainer_engine.families.common.stable_diffusion import StableDiffusion


def tiny_sd(family: str = "sd1x", **values: Any) -> StableDiffusion:
    """The micro model of sd1x or sd2x on the CPU."""
    model = str(values.pop("model", None) or tiny_model(family))
    loaded = tiny_family(model_family=family, pretrained_model_name_or_path=model, **values)
    assert isinstance(loaded, StableDiffusion)
    return loaded
