"""What ``simpletuner doctor`` found: one thing each, how bad it is, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from rich.markup import escape

from simpletuner_site.client.output import console


class Verdict(str, Enum):
    """How a finding is to be taken."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


SIGNS = {Verdict.OK: "[green]✓[/]", Verdict.WARNING: "[yellow]![/]", Verdict.PROBLEM: "[red]✗[/]"}
SUBJECT_COLUMNS = 12


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    subject: str
    verdict: Verdict
    text: str
    todo: str = ""
    """What to do; empty if there is nothing to do."""


def print_findings(findings: Iterable[Finding]) -> None:
    """A line each, and what to do below it."""
    target = console()
    for one in findings:
        target.print(f"{SIGNS[one.verdict]} {one.subject:<{SUBJECT_COLUMNS}} {escape(one.text)}", soft_wrap=True)
        if one.todo:
            target.print(f"{'':<{SUBJECT_COLUMNS + 3}}[dim]{escape(one.todo)}[/]", soft_wrap=True)
