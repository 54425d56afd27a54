"""What an option that is left empty means in a configuration: the family's default where it has one, else the registry's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trainer_engine.config.families import find_spec
from trainer_engine.config.options import REGISTRY


def effective_defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    """Option -> its value when it is not given; options without a default of their own are left out."""
    defaults = {name: spec.default for name, spec in REGISTRY.items() if not spec.required}
    family_spec = find_spec(str(config.get("model_family", "")))
    if family_spec is None:
        return defaults
    flavour = str(config.get("model_flavour") or family_spec.default_flavour)
    seed = config.get("seed")
    return {
        **defaults,
        "model_flavour": family_spec.default_flavour,
        "pretrained_model_name_or_path": family_spec.flavours.get(flavour),
        "prediction_type": family_spec.objective,
        "validation_seed": defaults["seed"] if seed is None else seed,
        **family_spec.defaults_of(flavour),
    }
