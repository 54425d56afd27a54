"""Options of the HiDream-I1 family, and the rules between them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from trainer_engine.config.option import OptionGroup, option
from trainer_engine.contract.errors import Problem

BALANCE, WEIGHT = "hidream_use_load_balancing_loss", "hidream_load_balancing_loss_weight"


class HiDreamOptions(OptionGroup):
    """Options of HiDream-I1 alone."""

    hidream_use_load_balancing_loss: bool = option(
        False,
        "Add to the loss how unevenly the tokens of a batch are spread over the experts of each block, so that the router learns to use "
        "all of them.",
    )
    hidream_load_balancing_loss_weight: float = option(
        0.01, "Factor of what hidream_use_load_balancing_loss adds: a block whose experts are used evenly adds as much.", ge=0, le=1
    )


def the_weight_has_an_effect(values: Mapping[str, Any]) -> Iterator[Problem]:
    """Notes a weight that nothing is multiplied by, and a loss that is multiplied by zero."""
    weight = values[WEIGHT]
    if not values[BALANCE] and weight != HiDreamOptions.model_fields[WEIGHT].default:
        yield Problem.note(WEIGHT, "no_effect", f"{BALANCE} is false: {WEIGHT} has no effect.", got=weight)
    if values[BALANCE] and not weight:
        yield Problem.note(BALANCE, "no_effect", f"{WEIGHT} is 0: {BALANCE} has no effect.", got=True)


GROUP = HiDreamOptions
RULES = (the_weight_has_an_effect,)
