"""Quantised types are refused where their library, their card or their options do not fit, with what to use instead."""

from __future__ import annotations

from typing import Any

import pytest

from tests.helpers.models import options_with
from trainer_engine.config.families import specs
from trainer_engine.config.options import REGISTRY
from trainer_engine.config.parse import check_options
from trainer_engine.config.precisions import EXTRAS, PRECISIONS, QUANTISED
from trainer_engine.config.resuming.identity import identity_differences, run_identity
from trainer_engine.contract.errors import InvalidOptions, Problem

FLUX = {"model_family": "flux", "model_type": "lora"}
FORMAT = (
    *("int8-quanto", "int4-quanto", "int2-quanto", "int8-torchao", "int8dq-torchao", "int8dq-int4-torchao", "int8-sdnq", "uint8-sdnq"),
    *("int16-sdnq", "uint16-sdnq", "fp16-sdnq", "fp8-sdnq", "int6-sdnq", "int5-sdnq", "uint5-sdnq", "uint4-sdnq", "uint3-sdnq"),
    *("uint2-sdnq", "nf4-bnb", "int4-torchao", "fp8-quanto", "fp8uz-quanto", "fp8-native", "fp8-torchao", "fp8wo-torchao"),
    *("fp8-int4-torchao",),
)
"""The words of the configuration format, without the one that is refused."""


def problems(**values: Any) -> list[Problem]:
    try:
        options_with(**{**FLUX, **values})
    except InvalidOptions as refused:
        return list(refused.problems)
    return []


def found(**values: Any) -> set[tuple[str, str]]:
    return {(problem.option, problem.code) for problem in problems(**values)}


def test_every_word_of_the_format_is_a_choice() -> None:
    assert set(FORMAT) == set(QUANTISED)
    for option in ("base_model_precision", "text_encoder_1_precision", "text_encoder_2_precision"):
        assert set(FORMAT) <= set(REGISTRY[option].choices)


@pytest.mark.parametrize("name", [name for name in FORMAT if not PRECISIONS[name].missing_packages])
def test_every_installed_type_is_accepted_for_the_base_and_the_text_encoders(name: str) -> None:
    assert problems(base_model_precision=name, text_encoder_1_precision=name, text_encoder_2_precision=name) == []


@pytest.mark.parametrize("option", ["base_model_precision", "text_encoder_1_precision"])
def test_a_type_without_its_library_is_refused_with_what_to_install(option: str) -> None:
    assert PRECISIONS["fp8-int4-torchao"].missing_packages == ("mslk",)
    (problem,) = problems(**{option: "fp8-int4-torchao"})
    assert (problem.option, problem.code) == (option, "not_installed")
    assert "mslk" in problem.message and "mslk" in problem.hint and "int8-torchao" in str(problem.expected)


def test_every_library_has_an_extra_or_is_named_alone() -> None:
    packages = {package for row in PRECISIONS.values() for package in row.packages}
    assert packages - set(EXTRAS) == {"mslk"}


def test_a_word_that_no_library_delivers_is_refused_with_the_reason_and_the_nearest_choice() -> None:
    (problem,) = problems(base_model_precision="fp8-transformerengine")
    assert problem.code == "not_available"
    assert "no quantiser for frozen weights" in problem.hint and "fp8-torchao" in problem.hint


def test_rounding_of_inputs_is_refused_for_libraries_that_cannot() -> None:
    assert found(base_model_precision="nf4-bnb", quantize_activations=True) == {("quantize_activations", "not_for_type")}
    assert found(base_model_precision="int8-torchao", quantize_activations=True) == set()
    (problem,) = problems(base_model_precision="int8-sdnq", quantize_activations=True)
    assert "sdnq_use_quantized_matmul" in problem.hint


def test_pipelines_are_refused_for_a_type_that_they_do_not_know() -> None:
    assert found(base_model_precision="fp8-native", quantize_via="pipeline") == {("quantize_via", "not_for_type")}
    assert found(base_model_precision="nf4-bnb", quantize_via="pipeline") == set()


@pytest.mark.parametrize(
    ("option", "value", "reason"),
    [
        ("sdnq_group_size", 64, "No weights are quantised by SDNQ"),
        ("quantize_activations", True, "Nothing is quantised"),
    ],
)
def test_an_option_without_effect_is_a_note(option: str, value: Any, reason: str) -> None:
    _, reported = check_options({**FLUX, option: value})
    (note,) = [problem for problem in reported if problem.option == option]
    assert note.code == "no_effect" and reason in note.message


def test_a_checkpoint_of_another_precision_or_other_settings_is_another_run() -> None:
    def identity(**values: Any) -> dict[str, Any]:
        return run_identity(options_with(**{**FLUX, **values}), specs()["flux"], None)

    plain = identity(base_model_precision="uint4-sdnq")
    assert plain["base_model_precision"] == "uint4-sdnq"
    assert identity_differences(plain, identity(base_model_precision="uint4-sdnq", sdnq_compile_mode="disabled")) == []
    assert identity_differences(plain, identity(base_model_precision="int8-torchao"))
    assert identity_differences(plain, identity(base_model_precision="uint4-sdnq", sdnq_group_size=16))
    assert identity(base_model_precision="int8-torchao", quantize_activations=True)["base_model_precision"] == "int8dq-torchao"
