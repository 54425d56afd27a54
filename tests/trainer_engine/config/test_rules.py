"""Rules between options: each reports the first value that breaks it and is silent about the last that does not."""

from __future__ import annotations

import math
from typing import Any

import pytest

from trainer_engine.config.families import specs
from trainer_engine.config.family_spec import FamilySpec
from trainer_engine.config.options import REGISTRY
from trainer_engine.config.parse import check_options, normalise
from trainer_engine.contract.errors import Level, Problem

GIVEN = {"model_type": "lora", "output_dir": "o", "data_backend_config": "d", "max_train_steps": 100, "num_train_epochs": 0}
NOTE, WARNING, ERROR = Level.NOTE, Level.WARNING, Level.ERROR


def problems_of(family: str = "flux", **values: Any) -> list[Problem]:
    return check_options({**GIVEN, "model_family": family, **values})[1]


@pytest.mark.parametrize(
    ("family", "broken", "kept", "problem"),
    [
        ("sdxl", {"flux_guidance_value": 2.0}, {"flux_guidance_value": 1.0}, ("flux_guidance_value", "other_family", NOTE)),
        ("pixart_sigma", {"max_grad_norm": 0.011}, {"max_grad_norm": 0.01}, ("max_grad_norm", "looser_than_family", NOTE)),
        ("pixart_sigma", {"max_grad_norm": 0}, {"max_grad_norm": 1e-4}, ("max_grad_norm", "looser_than_family", NOTE)),
        (
            "flux",
            {"optimizer": "adamw_bf16", "mixed_precision": "no"},
            {"optimizer": "adamw_bf16", "mixed_precision": "bf16"},
            ("optimizer", "works_as_adamw", NOTE),
        ),
        (
            "flux",
            {"optimizer": "prodigy", "learning_rate": 0.099},
            {"optimizer": "prodigy", "learning_rate": 0.1},
            ("learning_rate", "usually_one", NOTE),
        ),
        (
            "flux",
            {"lr_scheduler": "polynomial", "learning_rate": 1e-4, "lr_end": 1e-4},
            {"lr_scheduler": "polynomial", "learning_rate": 1e-4, "lr_end": 9e-5},
            ("lr_end", "not_below_peak", ERROR),
        ),
        ("flux", {"lr_warmup_steps": 101}, {"lr_warmup_steps": 100}, ("lr_warmup_steps", "longer_than_run", NOTE)),
        (
            "flux",
            {"checkpoint_step_interval": 50, "checkpointing_rolling_steps": 100},
            {"checkpoint_step_interval": 50, "checkpointing_rolling_steps": 75},
            ("checkpointing_rolling_steps", "never_due", WARNING),
        ),
        (
            "flux",
            {"resolution_type": "area", "resolution": 5.1},
            {"resolution_type": "area", "resolution": 5},
            ("resolution", "looks_like_pixels", ERROR),
        ),
        (
            "flux",
            {"resolution_type": "pixel_area", "resolution": 63},
            {"resolution_type": "pixel_area", "resolution": 64},
            ("resolution", "looks_like_megapixels", ERROR),
        ),
        (
            "flux",
            {"resolution_type": "pixel_area", "resolution": 512.5},
            {"resolution_type": "pixel", "resolution": 512.5},
            ("resolution", "not_a_whole_number", ERROR),
        ),
        (
            "flux",
            {"report_to": "tensorboard", "logging_dir": "../logs"},
            {"report_to": "tensorboard", "logging_dir": "a/logs"},
            ("logging_dir", "outside_output", ERROR),
        ),
        (
            "flux",
            {"report_to": "tensorboard", "logging_dir": "/logs"},
            {"report_to": "tensorboard", "logging_dir": "."},
            ("logging_dir", "outside_output", ERROR),
        ),
        ("flux", {"hub_model_id": "me/a..b"}, {"hub_model_id": "me/a.b"}, ("hub_model_id", "not_a_repository", ERROR)),
        ("flux", {"hub_model_id": "x" * 97}, {"hub_model_id": "x" * 96}, ("hub_model_id", "not_a_repository", ERROR)),
        (
            "flux",
            {"resume_from_checkpoint": "https://me:pw@h/checkpoint-1"},
            {"resume_from_checkpoint": "https://h/me@work/checkpoint-1"},
            ("resume_from_checkpoint", "password_in_address", ERROR),
        ),
        ("flux", {"webhook_config": "https://h/x"}, {"webhook_config": ""}, ("webhook_config", "not_json", ERROR)),
        ("flux", {"publishing_config": "s3://bucket"}, {"publishing_config": ""}, ("publishing_config", "not_json", ERROR)),
        (
            "sdxl",
            {"rescale_betas_zero_snr": True},
            {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"},
            ("rescale_betas_zero_snr", "needs_v_prediction", ERROR),
        ),
        ("sdxl", {"flow_schedule_shift": 1.0}, {}, ("flow_schedule_shift", "no_effect", NOTE)),
        ("flux", {"snr_gamma": 5.0}, {}, ("snr_gamma", "no_effect", NOTE)),
        ("sdxl", {"noise_offset": 0.2}, {"noise_offset": 0.2, "offset_noise": True}, ("noise_offset", "no_effect", NOTE)),
        ("sdxl", {"tokenizer_max_length": 50}, {"tokenizer_max_length": 77}, ("tokenizer_max_length", "no_effect", NOTE)),
        ("flux", {"tokenizer_max_length": 513}, {"tokenizer_max_length": 512}, ("tokenizer_max_length", "above_family", NOTE)),
        (
            "flux",
            {"model_flavour": "schnell", "tokenizer_max_length": 257},
            {"model_flavour": "schnell", "tokenizer_max_length": 256},
            ("tokenizer_max_length", "above_family", NOTE),
        ),
        ("sdxl", {"t5_padding": "zero"}, {}, ("t5_padding", "no_effect", NOTE)),
        ("wan", {"t5_padding": "zero"}, {}, ("t5_padding", "no_effect", NOTE)),
        (
            "flux",
            {"t5_padding": "zero", "flux_attention_masked_training": True},
            {"t5_padding": "zero"},
            ("t5_padding", "no_effect", NOTE),
        ),
        ("sdxl", {"snr_weight": 2.0}, {"snr_weight": 2.0, "snr_gamma": 5.0}, ("snr_weight", "no_effect", NOTE)),
        (
            "sdxl",
            {"snr_gamma": 5.0, "soft_min_snr_sigma_data": 0.5},
            {"snr_gamma": 5.0, "use_soft_min_snr": True, "soft_min_snr_sigma_data": 0.5},
            ("soft_min_snr_sigma_data", "no_effect", NOTE),
        ),
        (
            "sdxl",
            {"timestep_bias_strategy": "earlier", "timestep_bias_multiplier": 2, "timestep_bias_begin": 10},
            {"timestep_bias_strategy": "range", "timestep_bias_multiplier": 2, "timestep_bias_begin": 10},
            ("timestep_bias_begin", "no_effect", NOTE),
        ),
        ("sdxl", {"timestep_bias_strategy": "later"}, {}, ("timestep_bias_strategy", "no_effect", NOTE)),
        ("flux", {"timestep_bias_multiplier": 2}, {}, ("timestep_bias_multiplier", "no_effect", NOTE)),
        (
            "sdxl",
            {"timestep_bias_strategy": "range", "timestep_bias_multiplier": 2, "timestep_bias_begin": 500, "timestep_bias_end": 500},
            {"timestep_bias_strategy": "range", "timestep_bias_multiplier": 2, "timestep_bias_begin": 499, "timestep_bias_end": 500},
            ("timestep_bias_begin", "empty_range", ERROR),
        ),
        ("flux", {"lr_scale": True, "lr_scale_sqrt": True}, {"lr_scale": True}, ("lr_scale_sqrt", "two_scales", ERROR)),
        (
            "flux",
            {"optimizer": "optimi-lion", "adam_epsilon": 1e-6},
            {"optimizer": "optimi-adamw", "adam_epsilon": 1e-6},
            ("adam_epsilon", "no_effect", NOTE),
        ),
        (
            "flux",
            {"adam_weight_decay": 0, "optimizer_config": "weight_decay=0.1"},
            {"adam_weight_decay": 0, "optimizer_config": "eps=1e-6"},
            ("adam_weight_decay", "no_effect", NOTE),
        ),
        ("flux", {"optimizer": "torch-sgd", "adam_beta2": 0.99}, {"adam_beta2": 0.99}, ("adam_beta2", "no_effect", NOTE)),
        (
            "flux",
            {"num_machines": 2, "machine_rank": 2, "main_process_ip": "10.0.0.1"},
            {"num_machines": 2, "machine_rank": 1, "main_process_ip": "10.0.0.1"},
            ("machine_rank", "out_of_range", ERROR),
        ),
        (
            "flux",
            {"num_machines": 2, "machine_rank": 1},
            {"num_machines": 2, "machine_rank": 0},
            ("main_process_ip", "not_machine_0", ERROR),
        ),
        ("flux", {"main_process_ip": "--x"}, {"main_process_ip": "host-1"}, ("main_process_ip", "not_an_address", ERROR)),
    ],
)
def test_a_rule_reports_the_first_value_that_breaks_it(
    family: str, broken: dict[str, Any], kept: dict[str, Any], problem: tuple[str, str, Level]
) -> None:
    found = [(one.option, one.code, one.level) for one in problems_of(family, **broken)]
    assert found.count(problem) == 1, found
    kept_codes = [(one.option, one.code) for one in problems_of(family, **kept)]
    assert problem[:2] not in kept_codes


STARTS = [
    pytest.param(spec, flavour, model_type, lora_type, id=f"{spec.name}-{flavour}-{model_type}-{lora_type}")
    for spec in specs().values()
    for flavour in (None, *spec.flavours)
    for model_type in spec.model_types
    for lora_type in (("standard", "lycoris") if model_type == "lora" else ("standard",))
]


@pytest.mark.parametrize(("spec", "flavour", "model_type", "lora_type"), STARTS)
def test_the_defaults_of_every_family_and_flavour_start_a_run_without_a_note(
    spec: FamilySpec, flavour: str | None, model_type: str, lora_type: str
) -> None:
    values: dict[str, Any] = {"model_type": model_type, "lora_type": lora_type}
    if flavour:
        values["model_flavour"] = flavour
    if lora_type == "lycoris":
        values["lycoris_config"] = "lycoris.json"
    wanted = ["quantised_weights"] if model_type == "full" and spec.published_precisions else []
    assert [one.code for one in problems_of(spec.name, **values)] == wanted


@pytest.mark.parametrize("name", [name for name, spec in REGISTRY.items() if spec.kind in ("int", "float")])
def test_no_number_is_infinite_or_undefined(name: str) -> None:
    for value in (math.nan, math.inf, -math.inf, "nan", "inf", "-Infinity", "1e999", 10**400):
        typed, problems = normalise({name: value})
        assert name not in typed and [one.option for one in problems] == [name], value


@pytest.mark.parametrize("value", [math.inf, math.nan, 10**400], ids=["inf", "nan", "1e400"])
def test_an_argument_of_the_optimizer_is_a_finite_number(value: float) -> None:
    assert [(one.option, one.code) for one in problems_of(optimizer_config={"eps": value})] == [("optimizer_config", "not_a_number")]


@pytest.mark.parametrize("text", ["eps=1e-8,eps=1e-6", "eps=1e-8, --eps=1e-8"])
def test_an_argument_of_the_optimizer_is_given_once(text: str) -> None:
    (problem,) = problems_of(optimizer_config=text)
    assert (problem.option, problem.code) == ("optimizer_config", "conflicting_values") and "eps" in problem.message


@pytest.mark.parametrize(
    ("one", "other", "conflict"),
    [
        ({"output_dir": "/data/Run"}, {"--output_dir": "/data/run"}, True),
        ({"instance_prompt": "a Cat"}, {"--instance_prompt": "a cat"}, True),
        ({"learning_rate": 1e-5}, {"--learning_rate": "0.00001"}, False),
        ({"use_ema": True}, {"--use_ema": "TRUE"}, False),
        ({"optimizer": "ADAMW_bf16"}, {"--optimizer": "adamw-bf16"}, False),
        ({"seed": "x"}, {"--seed": "y"}, True),
    ],
)
def test_two_spellings_of_an_option_conflict_if_their_values_mean_something_else(
    one: dict[str, Any], other: dict[str, Any], conflict: bool
) -> None:
    assert ("conflicting_values" in [problem.code for problem in normalise({**one, **other})[1]]) == conflict
