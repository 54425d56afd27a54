"""Options whose purpose is met anyway are accepted with a note, and their values are checked like any other."""

from __future__ import annotations

from typing import Any

import pytest

from tests.helpers.models import options_with
from trainer_engine.config.options.hints import HINTS
from trainer_engine.config.options.registry import not_available
from trainer_engine.config.parse import check_options, normalise
from trainer_engine.contract.errors import Level

ASKED: dict[str, Any] = {
    "skip_file_discovery": ["vae", "text"],
    "metadata_update_interval": 65,
    "vae_cache_scan_behaviour": "sync",
    "training_scheduler_timestep_spacing": "leading",
    "fsdp_state_dict_type": "FULL_STATE_DICT",
}


def asked(name: str) -> Any:
    """A value that differs from the format's default."""
    default = not_available()[name]
    return ASKED.get(name, not default if isinstance(default, bool) else 3)


def test_every_hint_is_an_option_of_the_format_without_code() -> None:
    assert HINTS.keys() <= not_available().keys()


@pytest.mark.parametrize("name", HINTS)
def test_a_hint_is_a_note_that_says_what_happens_anyway(name: str) -> None:
    for value in (asked(name), str(asked(name)) if not isinstance(asked(name), list) else "vae, text"):
        typed, (problem,) = normalise({f"--{name}": value})
        assert typed == {} and (problem.option, problem.code, problem.level) == (name, "not_needed", Level.NOTE)
        assert problem.message == f"{name} has no effect: {HINTS[name]}."


@pytest.mark.parametrize(
    ("name", "value", "code"),
    [
        ("set_grads_to_none", "maybe", "not_a_boolean"),
        ("offload_during_startup", [1], "not_a_boolean"),
        ("read_batch_size", "many", "not_a_number"),
        ("read_batch_size", True, "not_a_number"),
        ("read_batch_size", -1, "not_a_number"),
        ("image_processing_batch_size", "１２", "not_a_number"),
        ("vae_cache_scan_behaviour", "guess", "not_a_choice"),
        ("training_scheduler_timestep_spacing", 3, "not_a_choice"),
        ("skip_file_discovery", "vae,everything", "not_a_choice"),
        ("skip_file_discovery", 7, "not_a_choice"),
        ("skip_file_discovery", [["vae"]], "not_a_choice"),
    ],
)
def test_a_value_that_a_hint_cannot_have_is_refused(name: str, value: Any, code: str) -> None:
    (problem,) = normalise({name: value})[1]
    assert (problem.option, problem.code, problem.level) == (name, code, Level.ERROR)


def test_a_configuration_of_the_format_with_hints_starts() -> None:
    hints = {name: asked(name) for name in HINTS}
    options, problems = check_options({**options_with().as_values(), **hints})
    assert options is not None
    assert {problem.option for problem in problems if problem.code == "not_needed"} == set(HINTS)
