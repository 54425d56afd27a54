"""``simpletuner``: the command line. Only the standard library is imported before a command is known."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from simpletuner_site import DEFAULT_PORT, __version__
from simpletuner_site.client.arguments import Commands, add_client_commands, add_options, common, env_actions, run_call

EXIT_USAGE = 2
COMPLETE = "__complete"
MOST_AMOUNT = 1_000_000


def whole_number(lowest: int, highest: int) -> Callable[[str], int]:
    """An argparse type with bounds."""

    def parse(text: str) -> int:
        if not text.isdecimal() or not lowest <= int(text) <= highest:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {lowest} to {highest}")
        return int(text)

    return parse


def add_home(parser: argparse.ArgumentParser) -> None:
    help_text = "folder with config/ and state/ (default: SIMPLETUNER_HOME, else the working directory)"
    parser.add_argument("--home", type=Path, default=None, metavar="DIR", help=help_text)


def add_allow_scripts(parser: argparse.ArgumentParser) -> None:
    help_text = "let runs start every program in a configuration, not only those in the hooks folders (docs/hooks.md)"
    parser.add_argument("--allow-scripts", action="store_true", help=help_text)


def add_root(parser: argparse.ArgumentParser) -> None:
    help_text = "another folder for data, models, caches and results; may be given several times (also: SIMPLETUNER_ROOTS)"
    parser.add_argument("--root", type=Path, action="append", default=[], metavar="DIR", help=help_text)


def add_server_arguments(parser: argparse.ArgumentParser) -> None:
    """Shared with ``manage.py server``."""
    parser.add_argument("--port", type=whole_number(1, 65535), default=DEFAULT_PORT, help=f"port to serve (default: {DEFAULT_PORT})")
    parser.add_argument("--host", default="127.0.0.1", help="address to serve (default: 127.0.0.1); others, such as 0.0.0.0, need a token")
    token = "ask for this token (better: SIMPLETUNER_TOKEN, which `ps` does not show); without a value, for the stored one"
    parser.add_argument("--token", nargs="?", const="", default=None, metavar="TOKEN", help=token)
    parser.add_argument("--no-worker", action="store_true", help="start no worker: `simpletuner worker` runs on its own")
    parser.add_argument("--generate-token", action="store_true", help="make a token, and print it once as a link")
    host = "a name by which other machines reach the server; may be given several times (also: SIMPLETUNER_ALLOWED_HOSTS)"
    parser.add_argument("--allowed-host", action="append", default=[], metavar="NAME", help=host)
    add_home(parser)
    add_root(parser)
    parser.add_argument("--slots", type=whole_number(1, 64), default=None, help="how many runs may train at a time (default: 1)")
    add_allow_scripts(parser)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="simpletuner", description="Train diffusion models over HTTP, or from the command line.")
    parser.add_argument("--version", action="version", version=f"simpletuner {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    server = commands.add_parser("server", help="serve the API and run a worker")
    add_server_arguments(server)
    server.set_defaults(run=run_server)

    worker = commands.add_parser("worker", help="start and follow runs without serving the API")
    add_home(worker)
    add_root(worker)
    worker.add_argument("--slots", type=whole_number(1, 64), default=None, help="how many runs may train at a time (default: 1)")
    add_allow_scripts(worker)
    worker.add_argument("--under-server", action="store_true", help=argparse.SUPPRESS)
    worker.set_defaults(run=run_worker)

    train = commands.add_parser("train", help="train one configuration without a server")
    which = train.add_mutually_exclusive_group(required=True)
    which.add_argument("--config", type=Path, metavar="FILE", help="an environment's config.json")
    which.add_argument("--environment", metavar="NAME", help="an environment of the home")
    add_options(train, "an option of this run only: max_train_steps=50")
    add_home(train)
    train.set_defaults(run=run_train)

    plan = commands.add_parser("plan", help="print which samples each step of a configuration takes, without training")
    plan.add_argument("--config", type=Path, required=True, metavar="FILE", help="an environment's config.json")
    plan.add_argument("--steps", type=whole_number(1, 10**9), default=None, metavar="N", help="how many steps (default: one epoch)")
    plan.add_argument("--json", action="store_true", help="print one JSON object per line")
    add_home(plan)
    plan.set_defaults(run=run_plan)

    check = commands.add_parser(
        "check", parents=[common()], help="say what stands in the way of a start, or of any configuration of the format"
    )
    check.add_argument("name", nargs="?", metavar="NAME", help="an environment (default: the active one)")
    check.add_argument(
        "--config", type=Path, default=None, metavar="FILE", help="any config.json of the format, which needs no environment"
    )
    check.add_argument("--datasets", type=Path, default=None, metavar="FILE", help="its datasets file (default: the one that it names)")
    add_options(check, "an option to lay over the environment")
    check.set_defaults(run=run_check)

    add_client_commands(commands)
    for actions in (commands, env_actions(commands)):
        add_import(actions)

    demo = commands.add_parser("demo", help="create a small model and images, and train through the API")
    demo.add_argument("--output", type=Path, default=Path("demo-output"), metavar="DIR", help="output folder (default: demo-output)")
    demo.add_argument("--keep", action="store_true", help="leave the server running at the end")
    demo.set_defaults(run=run_demo)

    add_upkeep(commands)
    commands.add_parser("export", help="write a trained adapter for diffusers or ComfyUI, or merged into a pipeline")

    migrate = commands.add_parser("migrate", help="migrate the database (the server does so itself)")
    add_home(migrate)
    migrate.set_defaults(run=run_migrate)
    return parser


def add_import(commands: Commands) -> None:
    take = commands.add_parser("import", help="make an environment of a configuration of another trainer")
    take.add_argument("files", type=Path, nargs="+", metavar="FILE", help="its YAML, TOML or JSON; a file of datasets may follow")
    take.add_argument("--from", dest="format", default=None, metavar="FORMAT", help="ai-toolkit, kohya, musubi, onetrainer or simpletuner")
    take.add_argument("--name", default=None, metavar="NAME", help="name of the environment (default: the one in the file)")
    take.add_argument("--family", default=None, metavar="FAMILY", help="family of the model, if the file does not name it")
    take.add_argument("--dry-run", action="store_true", help="print what would be taken and left out, and write nothing")
    take.add_argument("--json", action="store_true", help="print the report as JSON")
    add_home(take)
    take.set_defaults(run=run_import)


def amount(text: str) -> float:
    """An argparse type: a number from 0 to a million."""
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number <= MOST_AMOUNT:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to {MOST_AMOUNT}")
    return number


def add_upkeep(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    cache = commands.add_parser("cache", help="count, verify or clean the caches of latents and text embeddings")
    actions = cache.add_subparsers(dest="action", required=True, metavar="ACTION")
    words = {
        "stats": "print what caches hold",
        "verify": "read every entry; damaged ones are computed again",
        "gc": "remove entries that no run has used for long",
    }
    for name, help_text in words.items():
        action = actions.add_parser(name, help=help_text)
        action.add_argument("folders", type=Path, nargs="*", metavar="FOLDER", help="caches (default: those of the home's jobs)")
        action.add_argument("--json", action="store_true", help="print JSON")
        add_home(action)
        action.set_defaults(run=run_cache)
        if name == "gc":
            action.add_argument("--unused-days", type=amount, default=None, metavar="N", help="remove what no run used for N days")
            action.add_argument("--keep-gb", type=amount, default=None, metavar="N", help="then the longest unused until N GB are left")
            action.add_argument("--yes", action="store_true", help="remove it; without this only count")
    prune = commands.add_parser("prune", help="thin and remove what ended runs left in state/; results and checkpoints stay")
    prune.add_argument("--thin-events-days", type=amount, default=None, metavar="N", help="thin progress of runs that ended N days ago")
    prune.add_argument("--keep-runs-days", type=amount, default=None, metavar="N", help="remove folders of runs that ended N days ago")
    prune.add_argument("--keep-runs-gb", type=amount, default=None, metavar="N", help="remove the oldest ones until N GB are left")
    prune.add_argument("--yes", action="store_true", help="do it; without this only count")
    prune.add_argument("--json", action="store_true", help="print JSON")
    add_home(prune)
    prune.set_defaults(run=run_prune)


def home_of(arguments: argparse.Namespace) -> Path:
    from simpletuner_site.environment import read_environment

    return arguments.home or read_environment().home


def run_server(arguments: argparse.Namespace) -> int:
    from simpletuner_site.environment import BadEnvironment
    from simpletuner_site.security.token import BadToken
    from simpletuner_site.server.boot import boot, take_token
    from simpletuner_site.server.greeting import ChosenToken
    from simpletuner_site.server.server import CannotServe, bind_address, serve

    try:
        token = ChosenToken.of(arguments.token, take_token(), generate=arguments.generate_token)
        address = bind_address(arguments.host, has_token=token is not None)
        limits = {"allow_scripts": arguments.allow_scripts, "roots": arguments.root, "hosts": arguments.allowed_host}
        boot(home_of(arguments), arguments.slots, **limits, needs_token=token is not None)
        return serve(address, arguments.port, token, has_worker=not arguments.no_worker)
    except (CannotServe, BadToken, BadEnvironment, OSError) as error:
        print(f"simpletuner server: {error}", file=sys.stderr)
        return EXIT_USAGE


def run_worker(arguments: argparse.Namespace) -> int:
    from simpletuner_site.environment import BadEnvironment
    from simpletuner_site.server.boot import boot
    from simpletuner_site.server.migrations_state import migrate_if_needed
    from simpletuner_site.server.worker import run_worker as work

    try:
        boot(home_of(arguments), arguments.slots, allow_scripts=arguments.allow_scripts, roots=arguments.root)
    except (BadEnvironment, OSError) as error:
        print(f"simpletuner worker: {error}", file=sys.stderr)
        return EXIT_USAGE
    if not arguments.under_server:
        migrate_if_needed()
    return work(under_server=arguments.under_server)


def run_train(arguments: argparse.Namespace) -> int:
    from simpletuner_site.train.command import train

    home: Path | None = arguments.home
    if arguments.environment is None:
        return train(arguments.config, home, arguments.option)
    return train(home_of(arguments) / "config" / arguments.environment / "config.json", home, arguments.option)


def run_plan(arguments: argparse.Namespace) -> int:
    from simpletuner_site.train.plan import plan

    return plan(arguments.config, arguments.steps, as_json=arguments.json, home=arguments.home)


def run_check(arguments: argparse.Namespace) -> int:
    if arguments.config is None:
        return run_call(argparse.Namespace(**vars(arguments), function="runs.check_run"))
    from simpletuner_site.train.check import check

    return check(arguments.config, arguments.datasets, as_json=arguments.json, home=arguments.home)


def run_import(arguments: argparse.Namespace) -> int:
    from simpletuner_site.importing import ImportRequest, import_files

    request = ImportRequest(tuple(arguments.files), arguments.name, arguments.format, arguments.family)
    return import_files(request, home_of(arguments), is_dry=arguments.dry_run, as_json=arguments.json)


def run_demo(arguments: argparse.Namespace) -> int:
    from simpletuner_site.demo.walkthrough import run

    return run(arguments.output, keep=arguments.keep)


def run_cache(arguments: argparse.Namespace) -> int:
    from simpletuner_site.environment import BadEnvironment
    from simpletuner_site.upkeep import commands

    try:
        folders = commands.caches_of(home_of(arguments), arguments.folders)
        if arguments.action == "stats":
            return commands.show_caches(folders, as_json=arguments.json)
        if arguments.action == "verify":
            return commands.verify_caches(folders, as_json=arguments.json)
        limits = {"unused_days": arguments.unused_days, "keep_gb": arguments.keep_gb}
        return commands.clean_caches(folders, **limits, remove=arguments.yes, as_json=arguments.json)
    except (BadEnvironment, OSError, ValueError) as error:
        print(f"simpletuner cache: {error}", file=sys.stderr)
        return EXIT_USAGE


def run_prune(arguments: argparse.Namespace) -> int:
    from simpletuner_site.environment import BadEnvironment
    from simpletuner_site.server.boot import boot
    from simpletuner_site.server.migrations_state import migrate_if_needed
    from simpletuner_site.upkeep import commands

    try:
        boot(home_of(arguments))
        migrate_if_needed()
        names = ("thin_events_days", "keep_runs_days", "keep_runs_gb")
        return commands.prune_runs({name: getattr(arguments, name) for name in names}, remove=arguments.yes, as_json=arguments.json)
    except (BadEnvironment, OSError) as error:
        print(f"simpletuner prune: {error}", file=sys.stderr)
        return EXIT_USAGE


def run_export(rest: Sequence[str]) -> int:
    """Export in a process of its own, which parses the arguments: torch is never imported here."""
    return subprocess.call([sys.executable, "-m", "trainer_engine.export", *rest])


def run_complete(words: Sequence[str]) -> int:
    """Print what the last word may become; called by the completion scripts of shells."""
    from simpletuner_site.client.completion import candidates

    print("\n".join(candidates(build_parser(), words)))
    return 0


def run_migrate(arguments: argparse.Namespace) -> int:
    from simpletuner_site.server.boot import boot
    from simpletuner_site.server.migrations_state import migrate_if_needed

    boot(home_of(arguments))
    print("The database is up to date." if not migrate_if_needed(verbosity=1) else "The database was brought up to date.")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code: 0 for success, 2 for a refusal; ``train`` and ``export`` return the engine's."""
    given = sys.argv[1:] if argv is None else argv
    if given[:1] == ["export"]:
        return run_export(given[1:])
    if given[:1] == [COMPLETE]:
        return run_complete(given[1:])
    arguments = build_parser().parse_args(given)
    run: Callable[[argparse.Namespace], int] = arguments.run
    return run(arguments)


if __name__ == "__main__":
    sys.exit(main())
