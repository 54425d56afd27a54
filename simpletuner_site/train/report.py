"""Prints the problems before a run and its outcome after it."""

from __future__ import annotations

from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape

from trainer_engine.contract.errors import ExitCode, Level, Problem
from trainer_engine.contract.run import ExitReport, RunFolder
from training.preflight.summary import PreflightReport

SIGNS = {Level.ERROR: "[red]✗[/]", Level.WARNING: "[yellow]![/]", Level.NOTE: "[blue]·[/]"}
LOG_LINES = 15


def print_problems(console: Console, report: PreflightReport) -> None:
    """Print errors, then warnings and notes, each with its option and hint."""
    for level in Level:
        for problem in report.at(level):
            print_problem(console, problem)
    if report.errors:
        count = len(report.errors)
        console.print(f"[red]Nothing was started:[/] {count} problem{'s' if count > 1 else ''} to fix first.", highlight=False)


def print_problem(console: Console, problem: Problem) -> None:
    console.print(f"{SIGNS[problem.level]} [bold]{escape(problem.option)}[/]: {escape(problem.message)}", highlight=False)
    if problem.expected:
        console.print(f"    [dim]expected: {escape(problem.expected)}[/]", highlight=False)
    if problem.hint:
        console.print(f"    [dim]{escape(problem.hint)}[/]", highlight=False)


def report_of(folder: RunFolder) -> ExitReport | None:
    """The engine's report; None if it wrote none, or one that cannot be read, as on a full disk."""
    try:
        return ExitReport.read(folder)
    except (OSError, ValidationError):
        return None


def print_ending(console: Console, folder: RunFolder, code: int) -> None:
    """Print how the run ended and where to look."""
    report, log = report_of(folder), escape(str(folder.log))
    if report is None:
        console.print(f"[red]✗[/] The engine died (exit code {code}) without a report. The end of {log}:", highlight=False)
        console.print("\n".join(_last_lines(folder)), markup=False, highlight=False)
        return
    good = code in (ExitCode.COMPLETED, ExitCode.STOPPED)
    console.print(
        f"{'[green]✓[/]' if good else '[red]✗[/]'} {escape(report.status)} at step {report.step}. {escape(report.message)}", highlight=False
    )
    if report.hint:
        console.print(f"    [dim]{escape(report.hint)}[/]", highlight=False)
    if not good:
        console.print(f"    [dim]log: {log}[/]", highlight=False)


def _last_lines(folder: RunFolder) -> list[str]:
    try:
        return folder.log.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_LINES:]
    except OSError:
        return []
