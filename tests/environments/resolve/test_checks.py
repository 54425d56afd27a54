"""What can be said of a configuration before it is stored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from environments.paths import Home
from environments.resolve.checks import CheckedConfig, check_config
from environments.resolve.path_options import ADAPTERS, LOCAL, WEIGHTS, is_repository
from trainer_engine.config.options import REGISTRY

COMPLETE = {
    "--model_family": "pixart_sigma",
    "--model_type": "full",
    "--output_dir": "output/demo",
    "--data_backend_config": "demo/multidatabackend.json",
    "--max_train_steps": 200,
    "--num_train_epochs": 0,
}


@pytest.fixture
def place(tmp_path: Path) -> Home:
    (tmp_path / "config").mkdir()
    return Home(tmp_path, roots=())


def codes(checked: CheckedConfig) -> list[tuple[str, str]]:
    return [(problem.option, problem.code) for problem in checked.errors]


def test_a_complete_configuration_has_neither_errors_nor_warnings(place: Home) -> None:
    checked = check_config(COMPLETE, place)
    assert (checked.errors, checked.warnings) == ([], [])
    assert checked.values["max_train_steps"] == 200 and "seed" not in checked.values


@pytest.mark.parametrize("missing", ["model_family", "model_type", "output_dir", "data_backend_config"])
def test_a_missing_option_that_a_form_can_bring_is_a_warning(place: Home, missing: str) -> None:
    checked = check_config({key: value for key, value in COMPLETE.items() if key != f"--{missing}"}, place)
    assert checked.errors == []
    assert any(missing in warning for warning in checked.warnings)


@pytest.mark.parametrize("name", ["model_family", "model_type", "output_dir", "data_backend_config"])
def test_an_empty_required_option_is_an_error(place: Home, name: str) -> None:
    assert (name, "missing") in codes(check_config({**COMPLETE, f"--{name}": ""}, place))


@pytest.mark.parametrize(("steps", "epochs"), [(0, 0), (10, 10)])
def test_a_length_that_a_form_can_mend_is_a_warning(place: Home, steps: int, epochs: int) -> None:
    checked = check_config({**COMPLETE, "--max_train_steps": steps, "--num_train_epochs": epochs}, place)
    assert checked.errors == [] and len(checked.warnings) == 1


def test_facts_that_only_inform_are_suggestions(place: Home) -> None:
    checked = check_config({**COMPLETE, "--lr_warmup_steps": 500, "--lr_scheduler": "cosine"}, place)
    assert checked.warnings == [] and any("warm-up" in suggestion for suggestion in checked.suggestions)
    assert checked.advice == {"warnings": checked.warnings, "suggestions": checked.suggestions}


def test_an_alias_and_another_case_become_the_family(place: Home) -> None:
    for name in ("pixart", "PixArt_Sigma", "pixart_sigma"):
        assert check_config({**COMPLETE, "--model_family": name}, place).values["model_family"] == "pixart_sigma"


def test_an_option_is_reported_once(place: Home) -> None:
    reported = [option for option, _ in codes(check_config({**COMPLETE, "--output_dir": {"a": 1}, "seed": "x"}, place))]
    assert sorted(reported) == ["output_dir", "seed"]


@pytest.mark.parametrize("name", [*LOCAL, *WEIGHTS, *ADAPTERS])
def test_every_path_option_is_kept_from_the_system(place: Home, name: str) -> None:
    assert (name, "outside_roots") in codes(check_config({**COMPLETE, f"--{name}": "/etc/cron.d/x"}, place))


def test_path_options_are_options() -> None:
    assert {*LOCAL, *WEIGHTS, *ADAPTERS} <= set(REGISTRY)
    named_like_paths = {name for name in REGISTRY if name.endswith(("_dir", "_path")) or name.startswith("cache_dir")}
    assert named_like_paths - {"logging_dir"} <= {*LOCAL, *WEIGHTS, *ADAPTERS}  # below output_dir, and kept there by a rule


@pytest.mark.parametrize(
    ("weights", "flavour", "warns"),
    [
        ("terminusresearch/pixart-900m-1024-ft-v0.6", "900M-1024-v0.6", False),
        ("terminusresearch/pixart-900m-1024-ft-v0.6", "600M-512", True),
        ("somebody/else", "600M-512", False),
        (None, "600M-512", False),
    ],
)
def test_weights_of_another_flavour_are_worth_a_look(place: Home, weights: str | None, flavour: str, warns: bool) -> None:
    checked = check_config({**COMPLETE, "--pretrained_model_name_or_path": weights, "--model_flavour": flavour}, place)
    assert checked.errors == [] and bool(checked.warnings) is warns


@pytest.mark.parametrize("text", ["owner/name", "gpt2", "PixArt-alpha/PixArt-Sigma-XL-2-512-MS", "a/b_c.d"])
def test_repositories_are_distinguished_from_paths(text: str) -> None:
    assert is_repository(text)


@pytest.mark.parametrize("text", ["./a", "../a", "/a/b", "~/a", "a/b/c", "a/", "", "a b/c", "a/..", "a\0/b", "a/b\n", "ä/b"])
def test_paths_are_distinguished_from_repositories(text: str) -> None:
    assert not is_repository(text)


values: st.SearchStrategy[Any] = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12) | st.lists(st.integers(), max_size=2)
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.sampled_from([f"--{name}" for name in REGISTRY]) | st.text(max_size=8), values, max_size=5))
def test_a_stored_configuration_can_be_stored_again_and_stays_the_same(place: Home, config: dict[str, Any]) -> None:
    first = check_config({**COMPLETE, **config}, place)
    if not first.errors:
        again = check_config(first.values, place)
        assert again.errors == [] and again.values == first.values
