"""Patterns of users end, whatever they are, and mean what they mean to LyCORIS."""

from __future__ import annotations

import fnmatch
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.params import first_fast
from trainer_engine.config.lycoris import patterns
from trainer_engine.config.lycoris.config_file import parse_lycoris
from trainer_engine.config.lycoris.patterns import MATCHER, judge

MODULES = {"", "blocks", "blocks.0", "blocks.0.attn", "blocks.0.attn.to_q", "blocks.0.ff", "adaln_single.linear"}
GOOD: dict[str, Any] = {"algo": "lokr", "multiplier": 1, "linear_dim": 4, "linear_alpha": 1}
NEVER_ENDING = [
    r"([a-z_.0-9]+)+!$",
    r"^(\w+\.?)*#",
    r"(.*)*(.*)*(.*)*!",
    r"(a|a|b|\w|.)*!",
    r"(?=(\w|\d|.)*!)",
    "(?i)" + "[\\0-\\U0010ffff]" * 2000,
]


@pytest.fixture(autouse=True)
def short_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel counts whole seconds; one is enough to see that a pattern never ends."""
    monkeypatch.setattr(patterns, "CPU_SECONDS", 1)


def problems_of(preset: dict[str, Any], modules: set[str] | None = MODULES) -> list[tuple[str, str]]:
    _, problems = parse_lycoris({**GOOD, "apply_preset": preset}, None, modules)
    return [(problem.option.removeprefix("lycoris_config.apply_preset."), problem.code) for problem in problems]


@pytest.mark.parametrize("pattern", first_fast(NEVER_ENDING, 2), ids=range(len(NEVER_ENDING)))
def test_a_pattern_that_never_ends_is_refused(pattern: str) -> None:
    modules = {*MODULES, "a" * 60, "blocks." + "b" * 60}
    assert problems_of({"exclude_name": [pattern]}, modules) == [("exclude_name", "pattern_too_slow")]


def test_a_slow_pattern_is_named_and_those_before_it_keep_their_verdict() -> None:
    modules = {*MODULES, "a" * 60}
    assert problems_of({"target_name": [r"nowhere\..*", "(a+)+!", "("]}, modules) == [
        ("target_name", "nothing_matched"),
        ("target_name", "pattern_too_slow"),
    ]


@pytest.mark.parametrize("pattern", ["a{99999999999}", "(", "[z-a]", "(?<=a+)b", "(?P<1>a)", "\\", "(" * 5000 + ")" * 5000, "(?z)a"])
def test_a_pattern_that_cannot_be_compiled_is_refused(pattern: str) -> None:
    assert problems_of({"target_name": [pattern]}, None) == [("target_name", "bad_pattern")]


def test_lone_surrogates_and_nul_are_patterns_that_match_nothing() -> None:
    assert problems_of({"target_name": ["\ud800+", "\0"]}) == [("target_name", "nothing_matched")] * 2


def test_a_thousand_patterns_take_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    started = []
    popen = subprocess.Popen

    def counted(*args: Any, **keywords: Any) -> Any:
        started.append(args)
        return popen(*args, **keywords)

    monkeypatch.setattr(subprocess, "Popen", counted)
    assert problems_of({"target_name": [rf"blocks\.\d+\.attn(|x{number})" for number in range(1000)]}) == []
    assert len(started) == 1


def test_literal_names_take_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "Popen", None)
    assert problems_of({"target_name": ["blocks.0.attn", "adaln_single.linear"], "exclude_name": ["x" * 100_000]}) == []
    assert problems_of({"target_name": ["blocks.0.attn"], "use_fnmatch": True}) == []


PIECES = st.sampled_from(["blocks", "0", ".", "a", "attn", "*", "?", "[a-z]", "[!0]", "\\.", "+", "(", ")", "|", "-", "\n", "é"])


@settings(max_examples=40, deadline=None)
@given(patterns=st.lists(st.lists(PIECES, max_size=5).map("".join), min_size=5, max_size=40, unique=True), as_globs=st.booleans())
def test_verdicts_are_those_of_the_library(patterns: list[str], as_globs: bool) -> None:
    for pattern, verdict in judge(patterns, MODULES, as_globs=as_globs).items():
        try:
            matches = any(fnmatch.fnmatch(name, pattern) if as_globs else re.match(pattern, name) for name in MODULES)
        except re.error:
            assert verdict.trouble
        else:
            assert (verdict.trouble, verdict.matches) == ("", matches or pattern in MODULES)


def test_the_helper_imports_nothing_of_this_project() -> None:
    names = "[name for name in sys.modules if 'trainer' in name or name == 'torch']"
    code = f"import runpy, sys; runpy.run_path({str(MATCHER)!r}); print({names})"
    said = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"


def test_no_helper_is_left_behind() -> None:
    before = psutil.Process().children()
    judge(["(a+)+!"], ["a" * 60], as_globs=False)
    assert psutil.Process().children() == before


def test_the_web_and_the_configuration_match_no_pattern_of_a_user() -> None:
    """Expressions are compiled from constants, when a module is loaded; names from elsewhere go to the helper."""
    root = Path(__file__).resolve().parents[3]
    calls = re.compile(r"\bre\.(?:compile|match|search|fullmatch|sub|split|findall|finditer)\((?!\s*r?b?f?[\"'])|\bfnmatch\.")
    paths = [
        path
        for top in ("training", "environments", "simpletuner_site", "trainer_engine/contract", "trainer_engine/config")
        for path in (root / top).rglob("*.py")
    ]
    found = [str(path.relative_to(root)) for path in paths if calls.search(path.read_text(encoding="utf-8"))]
    of_specs = "trainer_engine/config/adapters/other_names.py"  # expressions that the specs of the families hold
    assert sorted(found) == [of_specs, "trainer_engine/config/lycoris/pattern_matcher.py"]
