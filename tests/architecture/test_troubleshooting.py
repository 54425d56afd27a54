"""The page about failures names every code with which a run can fail; pages for users name options that exist."""

from __future__ import annotations

import re

import pytest

from tests.architecture.test_documents import ROOT
from trainer_engine.config.datasets.names import known_names
from trainer_engine.config.options.registry import REGISTRY
from trainer_engine.contract import errors, output_lock
from trainer_engine.contract.errors import EngineError
from training.jobs.outcome import ERROR_OF_CODE, INTERRUPTED

WITH_VALUE = re.compile(r"`([a-z][a-z0-9_]+)=[^`]*`")
BY_START = {"invalid_options", "engine_error"}
"""A configuration with problems is refused before a run; the other code is the base class."""
ABOUT_OPTIONS = ("troubleshooting", "lora", "memory-options", "resuming", "evaluation", "distributed", "speed")


def test_every_code_with_which_a_run_fails_has_its_row() -> None:
    page = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
    rows = set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE))
    classes = [kind for module in (errors, output_lock) for kind in vars(module).values() if isinstance(kind, type)]
    codes = {kind.code for kind in classes if issubclass(kind, EngineError)} - BY_START
    assert rows == codes | {code for code, _, _ in ERROR_OF_CODE.values()} | {INTERRUPTED}


@pytest.mark.parametrize("page", ABOUT_OPTIONS)
def test_every_option_that_a_page_sets_exists(page: str) -> None:
    named = set(WITH_VALUE.findall((ROOT / f"docs/{page}.md").read_text(encoding="utf-8")))
    assert named and sorted(named - set(REGISTRY) - known_names()) == []
