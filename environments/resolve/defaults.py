"""What an option that is left empty means in a configuration: the family's default where it has one, else the registry's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trainer_engine.config.families import find_card
from trainer_engine.config.options import REGISTRY


def effective_defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    """Option -> its value when it is not given; options without a default of their own are left out."""
    defaults = {name: spec.default for name, spec in REGISTRY.items() if not spec.required}
    card = find_card(str(config.get("model_family", "")))
    if card is None:
        return defaults
    flavour = str(config.get("model_flavour") or card.default_flavour)
    seed = config.get("seed")
    return {
        **defaults,
        "model_flavour": card.default_flavour,
        "pretrained_model_name_or_path": card.flavours.get(flavour),
        "prediction_type": card.objective,
        "validation_seed": defaults["seed"] if seed is None else seed,
        **card.defaults_of(flavour),
    }
