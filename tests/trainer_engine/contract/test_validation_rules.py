"""What is told of options of validation images that a family does not understand."""

from __future__ import annotations

from typing import Any

import pytest

from trainer_engine.contract.options import check_options

GIVEN = {"model_type": "lora", "output_dir": "o", "data_backend_config": "d", "max_train_steps": 1}
PIXART, FLUX = "pixart_sigma", "flux"


def told(family: str, **values: Any) -> list[tuple[str, str, str]]:
    """(option, code, level) of everything that is said about these values."""
    _, problems = check_options({**GIVEN, "model_family": family, **values})
    return [(problem.option, problem.code, problem.level.value) for problem in problems if problem.option in values]


@pytest.mark.parametrize(
    ("family", "values", "said"),
    [
        (FLUX, {"validation_noise_scheduler": "ddim"}, ("validation_noise_scheduler", "not_for_family", "error")),
        (FLUX, {"validation_noise_scheduler": "unipc"}, None),
        (PIXART, {"validation_noise_scheduler": "ddim"}, None),
        (PIXART, {"validation_guidance_real": 2.0}, ("validation_guidance_real", "not_for_family", "error")),
        (PIXART, {"validation_guidance_real": 1.0}, None),
        (FLUX, {"validation_guidance_real": 2.0}, None),
        (FLUX, {"validation_guidance_rescale": 0.7}, ("validation_guidance_rescale", "not_for_family", "error")),
        (PIXART, {"validation_guidance_rescale": 0.7}, ("validation_guidance_rescale", "not_for_family", "error")),
        (PIXART, {"validation_no_cfg_until_timestep": 3}, ("validation_no_cfg_until_timestep", "no_effect", "note")),
        (FLUX, {"validation_no_cfg_until_timestep": 3}, ("validation_no_cfg_until_timestep", "no_effect", "note")),
        (FLUX, {"inference_scheduler_timestep_spacing": "leading"}, ("inference_scheduler_timestep_spacing", "no_effect", "note")),
        (PIXART, {"inference_scheduler_timestep_spacing": "leading"}, None),
        (PIXART, {"validation_resolution": "72x64"}, ("validation_resolution", "not_for_family", "error")),
        (FLUX, {"validation_resolution": "128,80x96"}, None),
        (PIXART, {"validation_image_quality": 50}, ("validation_image_quality", "no_effect", "note")),
        (PIXART, {"validation_epoch_interval": 0}, ("validation_epoch_interval", "out_of_range", "error")),
        (PIXART, {"validate_after_step": -1}, ("validate_after_step", "out_of_range", "error")),
        (PIXART, {"validation_image_format": "bmp"}, ("validation_image_format", "not_a_choice", "error")),
    ],
)
def test_a_value_that_does_nothing_or_cannot_be_had_is_told(family: str, values: dict[str, Any], said: tuple[str, str, str] | None) -> None:
    assert told(family, **values) == ([said] if said else [])


def test_values_that_come_together_are_looked_at_together() -> None:
    assert told(FLUX, validation_no_cfg_until_timestep=3, validation_guidance_real=2.0) == []
    late = told(FLUX, validation_no_cfg_until_timestep=4, validation_guidance_real=2.0, validation_num_inference_steps=4)
    assert late == [("validation_no_cfg_until_timestep", "no_effect", "note")]
    assert told(PIXART, validation_image_quality=50, validation_image_format="webp") == []
