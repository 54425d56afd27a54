"""Options that were removed from the format. Old configurations still contain them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from trainer_engine.config.json_fields import FALSE_WORDS, TRUE_WORDS
from trainer_engine.contract.errors import Problem

_FAMILY = "use model_family to choose the model"
_DATASETS = "set it for each dataset in the datasets file"
_OPTIMIZER = "use optimizer to choose the optimizer, and optimizer_config for its arguments"

GONE: Mapping[str, str] = MappingProxyType(
    {
        **dict.fromkeys(("validation_torch_compile", "validation_torch_compile_mode"), "dynamo_backend compiles the network"),
        "use_bitfit": "set lora_type, or train all weights with model_type=full",
        "adam_bfloat16": "use optimizer=adamw_bf16",
        "use_8bit_adam": "use optimizer=bnb-adamw8bit",
        "use_adafactor_optimizer": "use optimizer=torch-adafactor",
        "adafactor_relative_step": _OPTIMIZER,
        "use_prodigy_optimizer": "use optimizer=prodigy",
        **dict.fromkeys(("prodigy_beta3", "prodigy_decouple", "prodigy_use_bias_correction", "prodigy_safeguard_warmup"), _OPTIMIZER),
        **dict.fromkeys(("use_dadapt_optimizer", "dadaptation_learning_rate"), "use optimizer=prodigy"),
        "enable_xformers_memory_efficient_attention": "use attention_mechanism=xformers",
        "allow_tf32": "disable_tf32=true turns it off",
        **dict.fromkeys(("flux", "sd3", "sana", "kolors", "legacy", "pixart_sigma", "stable_cascade", "smoldit", "deepfloyd"), _FAMILY),
        **dict.fromkeys(("crop", "crop_aspect", "crop_style", "center_crop", "random_flip", "instance_data_dir"), _DATASETS),
        "use_original_images": _DATASETS,
        "scale_lr": "set learning_rate to the scaled value",
        "validation_epochs": "use validation_step_interval",
    }
)
"""Name -> what to do instead."""

RENAMED: Mapping[str, str] = MappingProxyType(
    {
        "use_gradient_checkpointing": "gradient_checkpointing",
        "flux_schedule_shift": "flow_schedule_shift",
        "flux_schedule_auto_shift": "flow_schedule_auto_shift",
        "flow_matching_sigmoid_scale": "flow_sigmoid_scale",
        "flux_use_uniform_schedule": "flow_use_uniform_schedule",
        "flux_use_beta_schedule": "flow_use_beta_schedule",
        "flux_beta_schedule_alpha": "flow_beta_schedule_alpha",
        "flux_beta_schedule_beta": "flow_beta_schedule_beta",
        "vae_path": "pretrained_vae_model_name_or_path",
        "lora_initialisation_style": "lora_init_type",
    }
)
"""Former name of an option -> its name. The values mean the same, so a configuration with a former name goes on working."""

DEFAULT_NOW: Mapping[str, str] = MappingProxyType({"allow_tf32": "GPUs that can use TF32 do, unless disable_tf32 is set"})
"""Removed switch -> what is true without it: switching it on asks for nothing, and switching it off for something."""


def is_off(value: object) -> bool:
    """Whether a value leaves an option off: false, null or empty, as a type or as text."""
    if value is None or value is False or (isinstance(value, (list, dict)) and not value):
        return True
    word = str(value).strip().lower() if isinstance(value, (str, int, float)) else "a value"
    return word in ("", "none", "null", "{}", "[]", "0.0", *FALSE_WORDS)


def means_default(value: object, default: object) -> bool:
    """Whether a value of an option that is not implemented is the default of the format, or leaves the option off."""
    word = str(value).strip().lower()
    if default is None or default is False:
        return is_off(value)
    if value is None or word in ("", "none", "null"):
        return True
    if default is True:
        return value is True or word in TRUE_WORDS
    try:
        return float(word) == float(str(default))
    except ValueError:
        return word == str(default).lower()


def gone_problem(name: str, value: Any) -> Problem:
    """Returns a note if the value asks for nothing, else an error that says what to use instead."""
    note = _why_nothing(name, value)
    if note:
        message = f"{name} is no longer part of the format. {note}"
        return Problem.note(name, "gone", message, got=value, hint="remove it from the configuration")
    return Problem.error(
        name, "gone", f"{name} is no longer part of the format.", got=value, expected="nothing", hint=f"{GONE[name]}; remove it"
    )


def _why_nothing(name: str, value: object) -> str:
    """Why a value of a removed option asks for nothing, as a sentence; empty if it asks for something."""
    if name not in DEFAULT_NOW:
        return "Its value leaves it off, so it is ignored." if is_off(value) else ""
    is_on = value is None or str(value).strip().lower() in ("", *TRUE_WORDS)
    return f"It is not needed: {DEFAULT_NOW[name]}." if is_on else ""
