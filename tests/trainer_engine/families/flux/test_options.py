"""What Flux.1's own options must keep together."""

from __future__ import annotations

from typing import Any

import pytest

from trainer_engine.config.parse import check_options
from trainer_engine.contract.errors import Level

GIVEN = {"model_family": "flux", "model_type": "lora", "output_dir": "o", "data_backend_config": "d", "max_train_steps": 1}


@pytest.mark.parametrize(
    ("values", "option", "code", "level"),
    [
        ({"flux_guidance_mode": "random-range", "flux_guidance_min": 5}, "flux_guidance_min", "above_maximum", Level.ERROR),
        ({"flux_guidance_mode": "random-range", "flux_guidance_value": 3}, "flux_guidance_value", "no_effect", Level.NOTE),
        ({"flux_guidance_min": 2}, "flux_guidance_min", "no_effect", Level.NOTE),
        ({"model_flavour": "schnell", "flux_guidance_value": 3}, "flux_guidance_value", "no_effect", Level.NOTE),
    ],
)
def test_guidance_that_is_impossible_or_has_no_effect_is_reported(values: dict[str, Any], option: str, code: str, level: Level) -> None:
    _, problems = check_options({**GIVEN, **values})
    assert (option, code, level) in [(problem.option, problem.code, problem.level) for problem in problems]


@pytest.mark.parametrize("values", [{}, {"flux_guidance_value": 3.5}, {"flux_guidance_mode": "random-range", "flux_guidance_max": 5}])
def test_guidance_that_makes_sense_is_accepted_without_a_note(values: dict[str, Any]) -> None:
    options, problems = check_options({**GIVEN, **values})
    assert options is not None
    assert not [problem for problem in problems if problem.option.startswith("flux_guidance")]
