"""``simpletuner import``: makes an environment of a configuration of another trainer, and prints what was taken and left out."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from environments.create.names import name_for_run
from environments.imports.checking import Imported
from environments.imports.documents import LARGEST_BYTES, Document, ImportRefused, parse_document, refused
from environments.imports.formats import suggested_name, translate
from environments.paths import Home
from simpletuner_site.environment import BadEnvironment
from simpletuner_site.train.report import print_problem
from trainer_engine.contract.errors import ExitCode, Problem
from trainer_engine.contract.files import read_small

ACTOR = "command line"
WIDE = 240
"""Columns of a report that goes into a file or another program."""


@dataclass(frozen=True)
class ImportRequest:
    """What to import, and how. None: recognised or named by the content."""

    files: tuple[Path, ...]
    name: str | None = None
    format: str | None = None
    family: str | None = None


def import_files(request: ImportRequest, home: Path, *, is_dry: bool = False, as_json: bool = False) -> int:
    """Print the report, and create the environment unless ``is_dry``. Returns 0, or 20 if nothing was created."""
    console = Console(stderr=True)
    try:
        documents = [_read(path) for path in request.files]
        name = request.name or name_for_run({"output_dir": suggested_name(documents) or request.files[0].stem}, ())
        imported = translate(
            documents, name=name, home=Home(home.expanduser().absolute()), format_name=request.format, family=request.family
        )
        if not is_dry:
            _create(imported, home)
    except ImportRefused as refusal:
        for problem in refusal.problems:
            print_problem(console, problem)
        return ExitCode.CONFIGURATION
    except (BadEnvironment, OSError) as error:
        console.print(f"[red]✗[/] {escape(str(error))}", highlight=False)
        return ExitCode.CONFIGURATION
    if as_json:
        print(json.dumps(as_document(imported), indent=2, ensure_ascii=False))
    else:
        _print(Console(width=None if sys.stdout.isatty() else WIDE), imported, home, is_dry=is_dry)
    return ExitCode.COMPLETED


def as_document(imported: Imported) -> dict[str, Any]:
    """The report as JSON."""
    return {
        "name": imported.name,
        "format": imported.format,
        "config": {f"--{option}": value for option, value in imported.planned.config.items()},
        "datasets": imported.planned.datasets,
        "adapter": imported.planned.adapter,
        "left_out": [one.as_dict() for one in imported.left_out],
        "notes": list(imported.notes),
    }


def _read(path: Path) -> Document:
    """Raises ImportRefused."""
    try:
        return parse_document(read_small(path, LARGEST_BYTES), path.name)
    except OSError as error:
        raise refused(path.name, "unreadable_file", f"{path} cannot be read: {error.strerror or error}.") from error


def _create(imported: Imported, home: Path) -> None:
    """Create the environment in the database and on disk. Raises ImportRefused, BadEnvironment, OSError."""
    from simpletuner_site.server.boot import boot
    from simpletuner_site.server.migrations_state import migrate_if_needed

    boot(home)
    migrate_if_needed()
    from environments.errors import EnvironmentRefused
    from environments.services import import_environment

    try:
        import_environment(imported, actor=ACTOR)
    except EnvironmentRefused as error:
        found = list(error.problems) or [Problem.error("name", "refused", str(error.detail))]
        raise ImportRefused(found) from error


def _print(console: Console, imported: Imported, home: Path, *, is_dry: bool) -> None:
    taken = [(one.name, one.option, one.value) for one in imported.taken]
    _print_table(console, f"Taken from {imported.format}", ("in the file", "option", "value"), taken)
    entries = imported.planned.datasets or []
    sets = [(str(one.get("id")), str(one.get("dataset_type", "image")), str(one.get("instance_data_dir", ""))) for one in entries]
    _print_table(console, "Datasets", ("id", "kind", "folder"), sets)
    left = [(one.name, one.value, one.reason) for one in imported.left_out]
    _print_table(console, "Left out", ("in the file", "value", "reason"), left)
    for note in imported.notes:
        console.print(f"[yellow]![/] {escape(note)}", highlight=False)
    counts = f"{len(imported.taken)} options taken, {len(imported.left_out)} values left out"
    if is_dry:
        console.print(f"[blue]·[/] {imported.name}: {counts}; nothing was written.", highlight=False)
    else:
        where = escape(str(home.expanduser().absolute() / "config" / imported.name))
        console.print(f"[green]✓[/] {where}: {counts}.", highlight=False)


def _print_table(console: Console, title: str, columns: tuple[str, str, str], rows: list[tuple[str, str, str]]) -> None:
    table = Table(title=title, title_justify="left", box=None)
    for name in columns:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*map(escape, row))
    console.print(table)
