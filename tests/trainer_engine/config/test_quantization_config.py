"""Settings of diffusers' quantizers by component are the options that name the same types, and nothing else."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer_engine.config.parse import check_options
from trainer_engine.config.precisions import QUANTISED
from trainer_engine.config.quantization_config import OPTION, QUANTO, TORCHAO, quantised_components

GIVEN = {"model_family": "flux", "model_type": "lora", "output_dir": "o", "data_backend_config": "d", "max_train_steps": 100}
NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
TYPES = [
    (NF4, "nf4-bnb"),
    ({**NF4, "bnb_4bit_use_double_quant": False, "quant_method": "bitsandbytes"}, "nf4-bnb"),
    ({"quant_type": "int8_weight_only"}, "int8-torchao"),
    ({"quant_type": "float8wo", "quant_method": "torchao"}, "fp8wo-torchao"),
    ({"weights_dtype": "int4"}, "int4-quanto"),
    ({"weights_dtype": "uint4", "quant_method": "sdnq"}, "uint4-sdnq"),
]


def errors(config: Any, **values: Any) -> list[tuple[str, str]]:
    found = check_options({**GIVEN, OPTION: config, **values})[1]
    return [(one.option, one.code) for one in found if one.level.value == "error" and one.code != "not_installed"]


@pytest.mark.parametrize(("settings", "name"), TYPES)
def test_settings_name_a_type(settings: dict[str, Any], name: str) -> None:
    assert quantised_components(json.dumps({"transformer": settings})) == ({"base_model_precision": name}, [])


def test_every_type_of_the_tables_is_one_of_the_options() -> None:
    assert {*TORCHAO.values(), *QUANTO.values()} <= set(QUANTISED)


def test_each_component_is_its_option() -> None:
    options, _ = check_options({**GIVEN, OPTION: {"transformer": {"weights_dtype": "int8"}, "text_encoder_2": {"weights_dtype": "int4"}}})
    assert options is not None
    chosen = options.precision
    assert (chosen.base_model_precision, chosen.text_encoder_1_precision, chosen.text_encoder_2_precision) == (
        *("int8-quanto", "no_change", "int4-quanto"),
    )


def test_the_path_of_a_file_is_noted_and_names_no_type() -> None:
    types, (note,) = quantised_components("config/types.json")
    assert types == {} and (note.code, note.level.value) == ("read_at_start", "note")


def test_the_type_of_the_arithmetic_is_noted_and_follows_mixed_precision() -> None:
    types, (note,) = quantised_components(json.dumps({"unet": {**NF4, "bnb_4bit_compute_dtype": "bfloat16"}}))
    assert types == {"base_model_precision": "nf4-bnb"}
    assert (note.option, note.code, note.level.value) == (f"{OPTION}.unet", "no_effect", "note")


def test_an_option_that_says_nothing_is_overridden() -> None:
    config = {"transformer": {"weights_dtype": "int8"}}
    options, _ = check_options({**GIVEN, OPTION: config, "base_model_precision": "no_change", "quantize_via": "pipeline"})
    assert options is not None and options.precision.base_model_precision == "int8-quanto"


def test_options_that_were_resolved_once_are_the_same_when_they_are_read_again() -> None:
    options, _ = check_options({**GIVEN, OPTION: {"transformer": {"weights_dtype": "int8"}}})
    assert options is not None
    again, problems = check_options(options.as_values())
    assert again == options and [one for one in problems if one.level.value == "error"] == []


@pytest.mark.parametrize(
    ("config", "values", "problem"),
    [
        ([NF4], {}, (OPTION, "not_an_object")),
        ("{", {}, (OPTION, "not_json")),
        ({"transformer": "nf4"}, {}, (f"{OPTION}.transformer", "not_an_object")),
        ({"vae": NF4}, {}, (f"{OPTION}.vae", "unknown_component")),
        ({"unet": NF4}, {}, (f"{OPTION}.unet", "not_for_family")),
        ({"text_encoder_2": NF4}, {"model_family": "pixart_sigma"}, (f"{OPTION}.text_encoder_2", "not_for_family")),
        ({"transformer": {"load_in_8bit": True}}, {}, (f"{OPTION}.transformer", "unknown_type")),
        ({"transformer": {"load_in_4bit": True}}, {}, (f"{OPTION}.transformer", "unknown_type")),
        ({"transformer": {"quant_type": "int7"}}, {}, (f"{OPTION}.transformer", "unknown_type")),
        ({"transformer": {"weights_dtype": "int7", "quant_method": "sdnq"}}, {}, (f"{OPTION}.transformer", "unknown_type")),
        ({"transformer": {**NF4, "bnb_4bit_use_double_quant": True}}, {}, (f"{OPTION}.transformer", "unknown_setting")),
        ({"transformer": {**NF4, "llm_int8_skip_modules": ["x"]}}, {}, (f"{OPTION}.transformer", "unknown_setting")),
        ({"transformer": NF4}, {"base_model_precision": "int8-quanto"}, ("base_model_precision", "conflicting_values")),
        ({"transformer": NF4}, {"model_type": "full"}, ("base_model_precision", "cannot_be_trained")),
        ({"text_encoder": NF4, "text_encoder_1": {"weights_dtype": "int8"}}, {}, (f"{OPTION}.text_encoder_1", "conflicting_values")),
    ],
)
def test_what_names_no_type_is_refused_by_name(config: Any, values: dict[str, Any], problem: tuple[str, str]) -> None:
    assert problem in errors(config, **values)


@pytest.mark.parametrize("config", [None, "", {}, "{}", {"transformer": {"weights_dtype": "int8"}, "text_encoder": NF4}])
def test_an_object_that_names_types_or_nothing_is_accepted(config: Any) -> None:
    assert errors(config) == []


@given(st.recursive(st.none() | st.booleans() | st.text(max_size=5), lambda inner: st.dictionaries(st.text(max_size=8), inner, max_size=3)))
def test_any_object_is_judged_without_an_exception(document: Any) -> None:
    types, problems = quantised_components(json.dumps({"transformer": document, "x": document}))
    assert problems and not types
