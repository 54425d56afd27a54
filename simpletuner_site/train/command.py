"""Check a configuration, start its engine, show the run, and end with the engine's exit code."""

from __future__ import annotations

import sys
import uuid
from pathlib import Path

from rich.console import Console

from environments.paths import Home
from environments.resolve.run import ResolvedRun, resolve_run
from environments.secrets.options import with_secrets
from simpletuner_site.environment import BadEnvironment, read_environment
from simpletuner_site.server.boot import make_folders
from simpletuner_site.train.config_file import UnreadableConfig, home_of_config, read_config
from simpletuner_site.train.follow import follow, ignore_interrupts, note_interrupts
from simpletuner_site.train.report import print_ending, print_problems
from simpletuner_site.train.run_screen import RunScreen
from trainer_engine.config.addresses import PRIVATE_VARIABLE
from trainer_engine.config.options.secrets import for_engine, hide_options, secrets_of
from trainer_engine.contract.errors import ExitCode
from trainer_engine.contract.run import SERVER_ONLY, JobSpec, RunFolder
from training.engine import process as engine_process
from training.engine.command_line import UnreadableAccelerateConfig, launch_command
from training.engine.keys import keys_without_use
from training.preflight.estimates import memory_numbers
from training.preflight.run import examine_run
from training.preflight.summary import PreflightReport

OPEN = {PRIVATE_VARIABLE: "1"}
"""A person's own shell may reach what it likes; only a server closes private networks."""


def train(config: Path, home: Path | None = None) -> int:
    """Train what ``config`` says; the exit code is the engine's (20 where the configuration is refused before it starts)."""
    console = Console(stderr=not sys.stdout.isatty())
    try:
        place, resolved = open_config(config, home)
    except (UnreadableConfig, BadEnvironment) as error:
        console.print(f"[red]✗[/] {error}", highlight=False)
        return ExitCode.CONFIGURATION
    make_folders(place.root)
    with console.status("Checking the configuration and the datasets"):
        report = examine_run(resolved, place)
    print_problems(console, report)
    if report.errors or report.resolved.options is None:
        return ExitCode.CONFIGURATION
    return run_engine(report, place, environment=config.absolute().parent.name, console=console)


def open_config(config: Path, home: Path | None) -> tuple[Home, ResolvedRun]:
    """The run that a file describes, and the home that its paths start from. Raises UnreadableConfig, BadEnvironment."""
    root, values, process = home_of_config(config, home), read_config(config), read_environment()
    # A person's own shell can start every program and reach every path anyway.
    place = Home(root, hooks=process.hooks, any_script=True, any_place=True, script_variables=process.hooks_env)
    return place, resolve_run(place, with_secrets(place, config.absolute().parent.name, values), {})


def run_engine(report: PreflightReport, place: Home, *, environment: str, console: Console) -> int:
    """Start an engine for a configuration that was found good, and stay with it until it ends."""
    options = report.resolved.options
    assert options is not None
    job_id = str(uuid.uuid4())
    folder = RunFolder(place.state / "runs" / job_id).create()
    resolved = report.resolved
    spec = JobSpec(
        job_id=job_id,
        environment=environment,
        options={name: value for name, value in hide_options(resolved.values).items() if name not in SERVER_ONLY},
        datasets=resolved.datasets,
        memory_estimate=memory_numbers(report.understood),
        scripts=place.script_rule,
    )
    spec.write(folder)
    try:
        command, variables = launch_command(folder.path, options)
    except UnreadableAccelerateConfig as error:
        console.print(f"[red]✗[/] accelerate_config: {error}", highlight=False)
        return ExitCode.CONFIGURATION
    if report.webhooks:
        console.print("[dim]·[/] webhook_config: events are posted by a server; this command posts none", highlight=False)
    interrupts = note_interrupts()
    identity = engine_process.start(
        folder,
        command,
        variables | OPEN | for_engine(secrets_of(resolved.values)),
        spec.scripts.variables,
        keys_without_use(options),
    )
    with RunScreen(console) as screen:
        code = follow(identity, folder, screen, interrupts)
        ignore_interrupts()
    print_ending(console, folder, code)
    return code
