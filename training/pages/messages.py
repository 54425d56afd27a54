"""What pages say about problems: errors of a refusal, warnings of a start."""

from __future__ import annotations

from django.contrib import messages
from django.http import HttpRequest

from environments.errors import EnvironmentRefused
from trainer_engine.contract.errors import Level, Problem
from training.errors import TrainingRefused
from training.preflight.summary import PreflightReport

MOST = 10
LEVELS = {Level.ERROR: messages.ERROR, Level.WARNING: messages.WARNING}


def sentence_of(problem: Problem) -> str:
    """A problem in one line."""
    return " ".join(part for part in (f"{problem.option}: {problem.message}", problem.hint) if part)


def say_problems(request: HttpRequest, found: TrainingRefused | EnvironmentRefused | PreflightReport | None) -> None:
    """Show the problems of a refusal, or the warnings of a report, on the next page. Its notes are shown by a check."""
    if found is None:
        return
    for problem in [one for one in found.problems if one.level is not Level.NOTE][:MOST]:
        messages.add_message(request, LEVELS[problem.level], sentence_of(problem))
