"""Checks the patterns in a LyCORIS file: each is valid, matches in time, and matches a module of the network."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from trainer_engine.config.lycoris import patterns
from trainer_engine.config.lycoris.algorithms import OPTION
from trainer_engine.contract.errors import Problem

KEYS = ("target_name", "exclude_name", "unet_target_name", "name_algo_map")
MUST_MATCH = ("target_name", "unet_target_name", "name_algo_map")
SAMPLE_NAMES = 4


def pattern_problems(document: Mapping[str, Any], modules: Collection[str] | None) -> Iterator[Problem]:
    """Yields a problem for each pattern that is not valid, too slow, or matches no module, which the library would only log.

    ``modules`` are the full names of the network's modules. Without them patterns need not match.
    """
    preset = document.get("apply_preset")
    if not isinstance(preset, Mapping):
        return
    lists = {key: value for key in KEYS if isinstance(value := preset.get(key), (list, Mapping))}
    by_key = {key: [one for one in value if isinstance(one, str)] for key, value in lists.items()}
    as_globs = preset.get("use_fnmatch") is True
    verdicts = patterns.judge([one for found in by_key.values() for one in found], modules or (), as_globs=as_globs)
    for key, found in by_key.items():
        for pattern in found:
            # Patterns after one that is too slow have no verdict.
            problem = _problem(key, pattern, verdicts.get(pattern), modules, as_globs)
            if problem is not None:
                yield problem


def _problem(key: str, pattern: str, verdict: patterns.Verdict | None, modules: Collection[str] | None, as_globs: bool) -> Problem | None:
    option = f"{OPTION}.apply_preset.{key}"
    kind = "a file-name pattern" if as_globs else "a regular expression"
    if verdict is None:
        return None
    if verdict.is_slow:
        message = f"Matching {pattern!r} takes too long: it was stopped after {patterns.CPU_SECONDS} s."
        hint = "do not repeat a group that itself repeats: (a+)+ is a+"
        return Problem.error(option, "pattern_too_slow", message, got=pattern, expected=f"{kind} that is matched quickly", hint=hint)
    if verdict.trouble:
        hint = "" if as_globs else "set use_fnmatch to true for file-name patterns such as blocks.*.ff"
        return Problem.error(option, "bad_pattern", f"{pattern!r} is not {kind}: {verdict.trouble}.", got=pattern, expected=kind, hint=hint)
    if modules and key in MUST_MATCH and not verdict.matches:
        expected = f"names such as {', '.join(sorted(modules)[-SAMPLE_NAMES:])}"
        return Problem.error(
            option, "nothing_matched", f"The network has no module that matches {pattern}.", got=pattern, expected=expected
        )
    return None
