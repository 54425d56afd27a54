"""What the commands print: tables and sentences for people, JSON for scripts."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

WIDE = 200
"""Columns of a table that is not printed on a terminal."""
SIGNS = {"problems": "[red]✗[/]", "warnings": "[yellow]![/]", "notes": "[blue]·[/]"}


def console() -> Console:
    return Console(width=None if sys.stdout.isatty() else WIDE, highlight=False)


def errors() -> Console:
    return Console(stderr=True, highlight=False, soft_wrap=True)


def print_json(document: Any) -> None:
    print(json.dumps(document, indent=2, ensure_ascii=False))


def print_line(text: str, sign: str = "[green]✓[/]") -> None:
    """A sentence; whatever looks like markup in it is shown as it is."""
    console().print(f"{sign} {escape(text)}", soft_wrap=True)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[Any]], *, empty: str = "") -> None:
    """A table, or a sentence if it has no rows."""
    found = [["" if value is None else str(value) for value in row] for row in rows]
    if not found:
        console().print(escape(empty))
        return
    table = Table(box=None, pad_edge=False)
    for name in columns:
        table.add_column(name, overflow="fold")
    for row in found:
        table.add_row(*map(escape, row))
    console().print(table)


def print_report(body: Mapping[str, Any], *, to: Console | None = None) -> None:
    """Problems, warnings and notes of an answer, each with its hint."""
    target = to or console()
    for name, sign in SIGNS.items():
        for problem in body.get(name) or ():
            option = str(problem.get("option") or "")
            target.print(f"{sign} {f'[bold]{escape(option)}[/]: ' if option else ''}{escape(str(problem['message']))}", soft_wrap=True)
            _print_help(problem, target)


def _print_help(problem: Mapping[str, Any], target: Console) -> None:
    """What is expected, and what to do."""
    if problem.get("expected"):
        target.print(f"    [dim]expected: {escape(str(problem['expected']))}[/]", soft_wrap=True)
    if problem.get("hint"):
        target.print(f"    [dim]{escape(str(problem['hint']))}[/]", soft_wrap=True)


def print_refusal(detail: str, body: Mapping[str, Any]) -> None:
    """Why a command failed. A single problem that repeats the sentence adds what is expected and what to do."""
    target = errors()
    target.print(f"[red]✗[/] {escape(detail)}")
    problems = list(body.get("problems") or [])
    if len(problems) == 1 and problems[0].get("message") == detail:
        _print_help(problems[0], target)
        return
    print_report(body, to=target)
