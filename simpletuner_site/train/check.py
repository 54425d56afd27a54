"""``simpletuner check``: prints what stands in the way of any configuration of the format. Needs no server, no database and no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from environments.files.datasets_file import OPTION, unwrapped_datasets
from environments.files.json_text import BadJson, parse_json
from simpletuner_site.train.command import UnreadableConfig, home_of_config, read_config
from simpletuner_site.train.report import print_problem
from trainer_engine.config.compatibility import SETTING, UNKNOWN, Compatibility, check_compatibility
from trainer_engine.config.options import canonical_name
from trainer_engine.config.options.refused import Reason
from trainer_engine.contract.errors import ExitCode
from trainer_engine.contract.files import read_small

TITLES = {
    Reason.FAMILY.value: "The model family",
    Reason.RESEARCH.value: "Research methods that this trainer does not implement",
    Reason.NOT_OFFERED.value: "Not offered by this trainer",
    Reason.LATER.value: "Not implemented yet",
    Reason.UNSAFE.value: "Refused because it is unsafe",
    UNKNOWN: "Names that the format does not have",
    SETTING: "Values to change",
}


def check(config: Path, datasets: Path | None = None, *, as_json: bool = False, home: Path | None = None) -> int:
    """Print the report. Returns 0 if nothing in the files stands in the way of a start, else 20."""
    console = Console(stderr=True)
    try:
        values = read_config(config)
        file = datasets or _datasets_file(values, config, home)
        content = unwrapped_datasets(_read(file)) if file else None
    except UnreadableConfig as error:
        console.print(f"[red]✗[/] {escape(str(error))}", highlight=False)
        return ExitCode.CONFIGURATION
    report = check_compatibility(values, content)
    if as_json:
        print(json.dumps(report.as_dict(), indent=2, ensure_ascii=False))
    else:
        _print(Console(), report, file)
    return ExitCode.COMPLETED if report.starts else ExitCode.CONFIGURATION


def _datasets_file(values: dict[str, Any], config: Path, home: Path | None) -> Path | None:
    """The datasets file that a configuration names; None if it does not lie on this machine."""
    named = next((value for name, value in values.items() if canonical_name(name) == OPTION), None)
    if not isinstance(named, str) or not named:
        return None
    root = home_of_config(config, home)
    places = (Path(named), root / named, root / "config" / named, config.parent / Path(named).name)
    return next((place for place in places if place.is_file()), None)


def _read(path: Path) -> Any:
    """Raises UnreadableConfig."""
    try:
        return parse_json(read_small(path))
    except OSError as error:
        raise UnreadableConfig(f"{path} cannot be read: {error.strerror or error}.") from error
    except BadJson as error:
        raise UnreadableConfig(f"{path} is {error}.") from error


def _print(console: Console, report: Compatibility, file: Path | None) -> None:
    for reason, title in TITLES.items():
        problems = [obstacle.problem for obstacle in report.obstacles if obstacle.reason == reason]
        if problems:
            console.print(f"[bold]{title}[/] ({len(problems)})", highlight=False)
        for problem in problems:
            print_problem(console, problem)
    for note in report.notes:
        print_problem(console, note)
    read = f"{report.options} options and {report.datasets} datasets" if file else f"{report.options} options"
    if file is None:
        console.print("[yellow]![/] The datasets file was not found; name it with --datasets.", highlight=False)
    if report.starts:
        console.print(f"[green]✓[/] {read}: nothing in the configuration stands in the way.", highlight=False)
    else:
        count = len(report.obstacles)
        console.print(f"[red]✗[/] {read}: {count} problem{'s' if count > 1 else ''} in the way of a start.", highlight=False)
