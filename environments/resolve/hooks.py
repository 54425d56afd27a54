"""Finds the program of a hook template and checks whether it may run. Touches nothing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from environments.paths import SHIPPED_SCRIPTS, Home, expanded, wrong_text
from trainer_engine.config.options.hooks import ONLY_WITH, SCRIPT_OPTIONS
from trainer_engine.config.options.placeholders import known_placeholders
from trainer_engine.contract.errors import Problem
from trainer_engine.contract.files import is_file
from trainer_engine.contract.hooks import BadTemplate, Template

SAMPLES = "simpletuner/examples/external-validation/"
"""The path of the samples in the configuration format."""


def resolve_scripts(given: Mapping[str, Any], home: Home) -> tuple[dict[str, str], list[Problem]]:
    """(option -> template with the program's absolute path, problems), for the hooks that the run would use.

    A template that cannot be parsed is left out, because the rules of the options report it.
    """
    resolved, problems = {}, []
    for name in SCRIPT_OPTIONS:
        text = str(given.get(name) or "")
        if not text.strip() or not _is_used(name, given):
            continue
        try:
            template = Template.parse(text, known_placeholders())
        except BadTemplate:
            continue
        wrong = wrong_text(template.program, name)
        if wrong is not None:
            problems.append(wrong)
            continue
        program = find_program(template.program, home)
        refusal = home.script_rule.refusal(program)
        if refusal is not None:
            expected = "a program that this server lets runs start"
            problems.append(Problem.error(name, refusal.code, f"{refusal.message}.", got=text, expected=expected, hint=refusal.hint))
        else:
            resolved[name] = str(template.with_program(os.path.realpath(program)))
    return resolved, problems


def _is_used(name: str, given: Mapping[str, Any]) -> bool:
    if name not in ONLY_WITH:
        return True
    other, wanted = ONLY_WITH[name]
    return bool(given.get(other) == wanted)


def find_program(given: str, home: Home) -> Path:
    """The path of the program in the first word of a template: the first candidate that exists, else the first.

    A leading ``~`` is the user's home, as in every path; nothing else is expanded.
    """
    if given.startswith(SAMPLES):
        return SHIPPED_SCRIPTS / given.removeprefix(SAMPLES)
    path = expanded(given)
    if path.is_absolute():
        return path
    candidates = list(_candidates(path, home))
    return next((one for one in candidates if is_file(one)), candidates[0])


def _candidates(path: Path, home: Home) -> Iterator[Path]:
    if len(path.parts) == 1:
        yield from (folder / path for folder in home.hook_folders)
    yield from (home.root / path, home.config / path)
    found = shutil.which(path.name) if len(path.parts) == 1 else None
    if found:
        yield Path(found)
