"""Checks a configuration, starts its engine, shows the run, and returns the engine's exit code."""

from __future__ import annotations

import errno
import sys
import uuid
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from rich.console import Console
from rich.markup import escape

from environments.files.config_files import without_marks
from environments.files.json_text import BadJson, parse_json
from environments.paths import Home
from environments.resolve.run import ResolvedRun, resolve_run
from environments.secrets.store import with_secrets
from simpletuner_site.environment import BadEnvironment, read_environment
from simpletuner_site.server.boot import make_folders
from simpletuner_site.train.follow import follow, ignore_interrupts, note_interrupts
from simpletuner_site.train.report import print_ending, print_problems
from simpletuner_site.train.run_screen import RunScreen
from trainer_engine.config.addresses import Reach
from trainer_engine.config.options import TrainingOptions
from trainer_engine.config.options.secrets import secrets_of_run
from trainer_engine.contract.errors import ExitCode
from trainer_engine.contract.files import read_small
from trainer_engine.contract.path_rule import EVERYWHERE
from trainer_engine.contract.run import RunFolder
from trainer_engine.datasets.scanning import MANY_OBJECTS
from training.engine import launcher
from training.engine.accelerate_file import UnreadableAccelerateConfig
from training.engine.launcher import Launch, LaunchSettings
from training.engine.machines import MachineRule
from training.preflight.estimates import memory_numbers
from training.preflight.run import examine_run
from training.preflight.summary import PreflightReport
from training.webhooks.egress import RunRules

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


def train(config: Path, home: Path | None = None, changes: Mapping[str, str] = MappingProxyType({})) -> int:
    """Train a configuration file, with ``changes`` laid over it for this run.

    Returns the engine's exit code, 20 if the configuration is refused before the start.
    """
    console = Console(stderr=not sys.stdout.isatty())
    try:
        place, resolved = open_config(config, home, changes)
    except (UnreadableConfig, BadEnvironment) as error:
        console.print(f"[red]✗[/] {escape(str(error))}", highlight=False)
        return ExitCode.CONFIGURATION
    try:
        make_folders(place.root)
    except OSError as error:
        console.print(f"[red]✗[/] {escape(str(place.root))} cannot be written: {error.strerror or error}.", highlight=False)
        return ExitCode.CONFIGURATION
    with console.status("Checking the configuration and the datasets"), MANY_OBJECTS.being_made():
        largest = read_environment().download_bytes
        rules = RunRules(Reach(private=True, largest_set_bytes=largest), MachineRule(is_open=True))
        report = examine_run(resolved, place, rules=rules)
    print_problems(console, report)
    if report.errors or report.resolved.options is None:
        return ExitCode.CONFIGURATION
    return run_engine(report, place, environment=config.absolute().parent.name, console=console)


def open_config(config: Path, home: Path | None, changes: Mapping[str, str] = MappingProxyType({})) -> tuple[Home, ResolvedRun]:
    """The home of a configuration file, and its resolved run. Raises UnreadableConfig, BadEnvironment."""
    root, values, process = home_of_config(config, home), read_config(config), read_environment()
    # A user's own shell can start every program and reach every path anyway.
    place = Home(root, hooks=process.hooks, any_script=True, any_place=True, script_variables=process.hooks_env)
    return place, resolve_run(place, with_secrets(place, config.absolute().parent.name, values), changes)


def run_engine(report: PreflightReport, place: Home, *, environment: str, console: Console) -> int:
    """Start an engine for a valid configuration and follow it until it ends. Returns the exit code."""
    options = report.resolved.options
    assert options is not None
    launch = launch_of(report, options, place, environment)
    folder = RunFolder(place.state / "runs" / launch.job_id)
    if report.webhooks:
        console.print("[dim]·[/] webhook_config: only a server posts events; this command posts none", highlight=False)
    interrupts = note_interrupts()
    try:
        identity = launcher.start(folder, launch)
    except UnreadableAccelerateConfig as error:
        console.print(f"[red]✗[/] accelerate_config: {escape(str(error))}", highlight=False)
        return ExitCode.CONFIGURATION
    except OSError as error:
        console.print(f"[red]✗[/] The engine could not be started: {escape(str(error))}.", highlight=False)
        return ExitCode.DISK if error.errno in FULL else ExitCode.FAILURE
    with RunScreen(console) as screen:
        code = follow(identity, folder, screen, interrupts)
        ignore_interrupts()
    print_ending(console, folder, code)
    return code


def launch_of(report: PreflightReport, options: TrainingOptions, place: Home, environment: str) -> Launch:
    """What the engine of a checked configuration is started with."""
    resolved = report.resolved
    return Launch(
        job_id=str(uuid.uuid4()),
        environment=environment,
        options=resolved.values,
        datasets=resolved.datasets,
        memory_estimate=memory_numbers(report.understood),
        settings=LaunchSettings.of(options, resolved.dataloader),
        scripts=place.script_rule,
        places=EVERYWHERE,
        secrets=secrets_of_run(resolved.values, resolved.datasets),
        machines=MachineRule(is_open=True),
        opens_private_networks=True,  # a user's own shell can reach every address; only a server closes private networks
    )


class UnreadableConfig(Exception):
    """The file holds no configuration; the message says why."""


def read_config(path: Path) -> dict[str, Any]:
    """The options of a file, with their names as written. Raises UnreadableConfig."""
    try:
        document = parse_json(read_small(path))
    except OSError as error:
        raise UnreadableConfig(f"{path} cannot be read: {error.strerror or error}.") from error
    except BadJson as error:
        raise UnreadableConfig(f"{path} is {error}.") from error
    if not isinstance(document, dict):
        raise UnreadableConfig(f"{path} must hold a JSON object of options, not a {type(document).__name__}.")
    return without_marks(document)


def home_of_config(path: Path, home: Path | None) -> Path:
    """The home for relative paths: ``home``, else the folder whose ``config/<environment>/`` holds the file, else the working directory."""
    if home is not None:
        return home.expanduser().absolute()
    folder = path.expanduser().absolute().parent
    if folder.parent.name == "config":
        return folder.parent.parent
    return Path.cwd()
