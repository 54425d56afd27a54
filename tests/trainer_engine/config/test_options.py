"""Values that users send become typed options, or a list of every problem."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trainer_engine.config.options import REGISTRY, not_available
from trainer_engine.config.options.checkpointing import parse_size
from trainer_engine.config.options.docs import page
from trainer_engine.config.options.registry import GROUPS
from trainer_engine.config.options.sizes import parse_resolutions
from trainer_engine.config.parse import check_options, normalise, parse_options
from trainer_engine.contract.errors import InvalidOptions, Level, errors_in

ROOT = Path(__file__).resolve().parents[3]
COMPLETE = {
    "--model_family": "pixart_sigma",
    "--model_type": "full",
    "--output_dir": "/data/out",
    "--data_backend_config": "/data/multidatabackend.json",
    "--max_train_steps": "200",
    "--num_train_epochs": "0",
}


def problems_of(**changes: Any) -> list[tuple[str, str]]:
    """(option, code) of every error when ``changes`` are made to a complete configuration; None removes an option."""
    values = {**COMPLETE, **{f"--{name}": value for name, value in changes.items()}}
    _, problems = check_options({name: value for name, value in values.items() if value is not ...})
    return [(problem.option, problem.code) for problem in errors_in(problems)]


def test_a_complete_configuration_is_accepted() -> None:
    options = parse_options(COMPLETE)
    assert options.run.max_train_steps == 200
    assert options.model.model_family == "pixart_sigma"


def test_text_and_typed_values_give_the_same_options() -> None:
    text = {"learning_rate": "0.0001", "train_batch_size": "2", "dataloader_prefetch": "true", "resolution": "512", "seed": "7"}
    typed = {"learning_rate": 1e-4, "train_batch_size": 2, "dataloader_prefetch": True, "resolution": 512, "seed": 7}
    assert normalise(text) == normalise(typed)


def test_names_are_accepted_with_and_without_dashes() -> None:
    assert normalise({"--seed": 1}) == normalise({"seed": 1}) == normalise({"-seed": 1})


def test_the_parser_reports_every_problem_at_once() -> None:
    with pytest.raises(InvalidOptions) as raised:
        parse_options({"--learning_rate": "fast", "--train_batch_size": 0, "--optimzer": "adamw_bf16"})
    found = {problem.option for problem in raised.value.problems}
    assert found >= {"learning_rate", "train_batch_size", "optimzer", "model_family", "model_type", "output_dir", "data_backend_config"}


@pytest.mark.parametrize(
    ("name", "value", "code"),
    [
        ("learning_rate", "fast", "not_a_number"),
        ("learning_rate", "nan", "not_a_number"),
        ("learning_rate", "1e999", "not_a_number"),
        ("learning_rate", 10**400, "not_a_number"),
        ("learning_rate", 0, "out_of_range"),
        ("learning_rate", True, "not_a_number"),
        ("learning_rate", [1e-4], "not_a_number"),
        ("train_batch_size", 0, "out_of_range"),
        ("train_batch_size", 2.5, "not_a_whole_number"),
        ("train_batch_size", "two", "not_a_whole_number"),
        ("train_batch_size", True, "not_a_whole_number"),
        ("train_batch_size", 10**30, "out_of_range"),
        ("max_train_steps", -1, "out_of_range"),
        ("seed", -1, "out_of_range"),
        ("gradient_checkpointing", "maybe", "not_a_boolean"),
        ("gradient_checkpointing", 2, "not_a_boolean"),
        ("model_family", "pixelart", "unknown_family"),
        ("model_family", "hunyuanvideo", "not_available"),
        ("model_family", ..., "missing"),
        ("model_family", "", "missing"),
        ("model_type", "both", "not_a_choice"),
        ("model_flavour", "900M-2048", "unknown_flavour"),
        ("output_dir", "", "missing"),
        ("output_dir", "a\0b", "not_text"),
        ("output_dir", {"a": 1}, "not_text"),
        ("optimizer", "soap", "not_available"),
        ("optimizer", "adamw_bf61", "not_a_choice"),
        ("optimizer_config", "weight_decay", "not_key_value"),
        ("optimizer_beta1", 0.9, "incomplete"),
        ("lr_scheduler", "cosinus", "not_a_choice"),
        ("base_model_precision", "int8-quanto", "cannot_be_trained"),
        ("mixed_precision", "fp8", "not_available"),
        ("report_to", "comet_ml", "unknown_tracker"),
        ("validation_resolution", "1024x1000x3", "not_a_size"),
        ("validation_resolution", "1001", "not_a_size"),
        ("validation_resolution", "64", "not_a_size"),
        ("validation_guidance", 99, "out_of_range"),
        ("prediction_type", "flow_matching", "not_for_family"),
        ("crepa_enabled", True, "not_available"),
        ("push_checkpoints_to_hub", True, "needs_another"),
        ("hub_model_id", "a/b/c", "not_a_repository"),
        ("peft_lora_mode", "singlora", "not_available"),
        ("learning_rte", 1, "unknown_option"),
        ("resolution", 0.5, "looks_like_megapixels"),
        ("maximum_image_size", 1024, "incomplete"),
        ("caption_strategy", "instanceprompt", "missing"),
    ],
)
def test_a_wrong_value_is_named_with_its_code(name: str, value: Any, code: str) -> None:
    found = problems_of(**{name: value})
    assert code in {found_code for _, found_code in found}, found


def test_a_wrong_value_names_what_was_sent_and_expected_and_the_fix() -> None:
    _, problems = check_options({**COMPLETE, "--optimizer": "adamw_bf61"})
    (problem,) = errors_in(problems)
    assert problem.got == "adamw_bf61"
    assert "torch-adamw" in problem.expected
    assert problem.hint == "did you mean adamw_bf16?"


def test_two_spellings_with_different_values_contradict() -> None:
    _, problems = normalise({"--seed": 1, "seed": 2})
    assert [problem.code for problem in problems] == ["conflicting_values"]
    assert normalise({"--seed": 1, "seed": "1"}) == ({"seed": 1}, [])


@pytest.mark.parametrize("value", ["", None, "none", "null"])
def test_a_fresh_start_is_asked_for_with_nothing(value: Any) -> None:
    assert normalise({"resume_from_checkpoint": value}) == ({"resume_from_checkpoint": ""}, [])


@pytest.mark.parametrize(("steps", "epochs", "code"), [(0, 0, "no_length"), (10, 1, "two_lengths")])
def test_a_run_has_exactly_one_length(steps: int, epochs: int, code: str) -> None:
    assert code in {found for _, found in problems_of(max_train_steps=steps, num_train_epochs=epochs)}


def test_steps_alone_are_a_length() -> None:
    values = {name: value for name, value in COMPLETE.items() if name != "--num_train_epochs"}
    assert parse_options(values).run.num_train_epochs == 0


def test_the_family_fills_in_its_own_defaults_and_yields_to_the_user() -> None:
    assert parse_options(COMPLETE).optimizer.max_grad_norm == 0.01
    assert parse_options({**COMPLETE, "max_grad_norm": 1}).optimizer.max_grad_norm == 1


def test_an_alias_of_a_family_is_stored_under_its_name() -> None:
    assert parse_options({**COMPLETE, "--model_family": "PixArt"}).model.model_family == "pixart_sigma"


@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp32", "no_change", "none", ""])
def test_an_unquantised_base_is_accepted_with_a_full_fine_tune(precision: str) -> None:
    assert problems_of(base_model_precision=precision) == []


def test_a_long_warmup_is_a_note_and_no_error() -> None:
    options, problems = check_options({**COMPLETE, "--lr_warmup_steps": 500})
    assert options is not None
    assert ("lr_warmup_steps", Level.NOTE) in {(problem.option, problem.level) for problem in problems}


def test_the_default_of_every_option_without_code_is_accepted() -> None:
    for name, default in not_available().items():
        assert normalise({name: default}) == ({}, []), name
        assert normalise({name: str(default)}) == ({}, []), name


def test_the_default_of_every_option_with_code_is_accepted_as_value_and_as_text() -> None:
    for name, spec in REGISTRY.items():
        if not spec.required:
            typed, problems = normalise({name: spec.default})
            assert (typed[name], problems) == (spec.default, []), name
            if isinstance(spec.default, (bool, int, float, str)):
                assert normalise({name: str(spec.default)}) == ({name: spec.default}, []), name


def test_as_values_parse_back_to_the_same_options() -> None:
    options = parse_options({**COMPLETE, "optimizer_config": "weight_decay=0.02,eps=1e-8", "validation_seed": 3})
    assert parse_options(options.as_values()) == options
    assert parse_options(json.loads(json.dumps(options.as_values()))) == options


def test_no_option_is_both_available_and_not() -> None:
    assert not set(REGISTRY) & set(not_available())


def test_every_option_group_has_a_docstring() -> None:
    assert all((cls.__doc__ or "").strip() for cls in GROUPS.values())
    assert all(len(spec.help) > 15 for spec in REGISTRY.values())


@pytest.mark.parametrize(
    ("text", "sizes"),
    [
        ("1024x1024", [(1024, 1024)]),
        ("512", [(512, 512)]),
        ("1", [(1024, 1024)]),
        ("0.25", [(512, 512)]),
        ("832x1216, 1024", [(832, 1216), (1024, 1024)]),
        ("512, 1024, 512x512, 0.25, 1", [(512, 512), (1024, 1024)]),
    ],
)
def test_validation_sizes_are_read(text: str, sizes: list[tuple[int, int]]) -> None:
    assert parse_resolutions(text) == sizes


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.sampled_from([*REGISTRY, *list(not_available())[:40], "nothing"]), JUNK, max_size=6))
def test_no_input_breaks_the_parser(values: dict[str, Any]) -> None:
    options, problems = check_options(values)
    assert (options is None) == bool(errors_in(problems))
    assert all(problem.message and problem.option for problem in problems)


def test_the_options_page_is_generated_from_the_registry() -> None:
    assert (ROOT / "docs" / "options.md").read_text(encoding="utf-8") == page()


def test_the_word_none_selects_a_choice_called_none() -> None:
    assert normalise({"ema_validation": "None"}) == ({"ema_validation": "none"}, [])


def test_a_limit_of_nothing_keeps_every_checkpoint() -> None:
    for name in ("checkpoints_total_limit", "checkpoints_rolling_total_limit"):
        limits = [getattr(parse_options({**COMPLETE, name: value}).checkpointing, name) for value in (0, "-1", None, "null", 3)]
        assert limits == [0, -1, 0, 0, 3]
    assert parse_options(COMPLETE).checkpointing.checkpoints_total_limit == 5


@pytest.mark.parametrize(("text", "size"), [("12345", 12345), ("500M", 500 << 20), ("1.5G", 3 << 29), ("2 TiB", 2 << 40), ("7kb", 7 << 10)])
def test_sizes_are_read(text: str, size: int) -> None:
    assert parse_size(text) == size


def test_a_threshold_that_is_no_size_and_a_script_for_a_low_disk_are_refused() -> None:
    assert problems_of(disk_low_threshold="much") == [("disk_low_threshold", "not_a_size")]
    assert problems_of(disk_low_action="later") == [("disk_low_action", "not_a_choice")]
    assert problems_of(disk_low_threshold="20G", disk_low_action="wait", delete_invalid_checkpoints=True) == []


def test_rolling_checkpoints_that_are_never_due_are_a_warning() -> None:
    _, problems = check_options({**COMPLETE, "checkpointing_rolling_steps": 100, "checkpoint_step_interval": 50})
    assert ("checkpointing_rolling_steps", "never_due") in [(problem.option, problem.code) for problem in problems]


def test_batches_are_prefetched_unless_a_configuration_turns_it_off() -> None:
    assert REGISTRY["dataloader_prefetch"].default is True


def test_an_option_that_exists_is_not_listed_as_one_without_code() -> None:
    listed = json.loads((ROOT / "trainer_engine/config/options/not_available.json").read_text(encoding="utf-8"))
    assert set(listed).isdisjoint(REGISTRY)
