"""The commands that talk to a server or work on a home's files. Nothing but the standard library is imported to parse them."""

from __future__ import annotations

import argparse
import os
import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

EXIT_USAGE = 2
FAMILIES = "PixArt Sigma is pixart_sigma; `simpletuner options model_family` lists them"
ACTIONS = {
    "stop": ("/api/training/stop", "finish the step, save a checkpoint, end"),
    "cancel": ("/api/training/cancel", "end now and save nothing"),
    "save": ("/api/training/checkpoint/run", "save a checkpoint after the current step"),
    "sample": ("/api/training/validation/run", "generate the validation images after the current step"),
}
"""Command -> the call, and what it does to a run."""

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]
else:
    Commands = argparse._SubParsersAction


def option_value(text: str) -> tuple[str, str]:
    """An argparse type: ``max_train_steps=50``."""
    name, sign, value = text.partition("=")
    if not sign or not name.strip("-"):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return f"--{name.lstrip('-')}", value


class Options(argparse.Action):
    """Collects NAME=VALUE into a dictionary; the last value of a name wins."""

    def __call__(self, parser: object, namespace: argparse.Namespace, values: object, option_string: str | None = None) -> None:
        assert isinstance(values, tuple)
        setattr(namespace, self.dest, {**getattr(namespace, self.dest), values[0]: values[1]})


def add_options(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("-o", "--option", type=option_value, action=Options, default={}, metavar="NAME=VALUE", help=what)


def common() -> argparse.ArgumentParser:
    """The parent of every command here."""
    parent = argparse.ArgumentParser(add_help=False)
    home = "folder with config/ and state/ (default: SIMPLETUNER_HOME, else the working directory)"
    parent.add_argument("--home", type=Path, default=None, metavar="DIR", help=home)
    url = "a server to talk to (also: SIMPLETUNER_URL; its token: SIMPLETUNER_TOKEN); default: the one that serves the home"
    parent.add_argument("--url", default=None, metavar="ADDRESS", help=url)
    parent.add_argument("--json", action="store_true", help="print JSON")
    return parent


def call(parser: argparse.ArgumentParser, function: str, **defaults: object) -> None:
    """Let a parser run ``module.function`` of this package."""
    parser.set_defaults(run=run_call, function=function, **defaults)


def add_client_commands(commands: Commands) -> None:
    parent = common()
    add_environments(commands, parent)
    start = commands.add_parser("start", parents=[parent], help="start a run of the active environment, or of the one that is named")
    start.add_argument("name", nargs="?", metavar="NAME", help="an environment; it is activated first")
    add_options(start, "an option of this run; the environment keeps it")
    call(start, "runs.start_run")

    resume = commands.add_parser("resume", parents=[parent], help="go on with a run that has ended, from its newest checkpoint")
    _add_run(resume)
    add_options(resume, "an option that is different from then on")
    call(resume, "runs.resume_run")

    status = commands.add_parser("status", parents=[parent], help="show the current or last run, or the one that is named")
    _add_run(status)
    call(status, "runs.show_status")

    jobs = commands.add_parser("jobs", parents=[parent], help="list the runs, newest first")
    jobs.add_argument("--limit", type=int, default=20, metavar="N", help="how many (default: 20)")
    call(jobs, "runs.list_jobs")

    for name, (path, help_text) in ACTIONS.items():
        action = commands.add_parser(name, parents=[parent], help=help_text)
        _add_run(action)
        call(action, "runs.act_on_run", path=path)

    events = commands.add_parser("events", parents=[parent], help="print what a run reported, a line each")
    _add_run(events)
    events.add_argument("--follow", "-f", action="store_true", help="go on until the run has ended")
    events.add_argument("--since", type=int, default=0, metavar="INDEX", help="begin at this index (default: 0)")
    events.add_argument("--all", action="store_true", help="print every step too")
    call(events, "watch.show_events")

    watch = commands.add_parser("watch", parents=[parent], help="show a run with its progress until it has ended")
    _add_run(watch)
    call(watch, "watch.watch_run")

    options = commands.add_parser("options", parents=[parent], help="explain an option, or search for one")
    options.add_argument("key", metavar="KEY", help="name of an option, or a word of its name or help")
    options.add_argument("--family", default=None, help="show defaults of this family")
    options.add_argument("--flavour", default=None, help="and of this flavour of it")
    call(options, "runs.show_option")

    doctor = commands.add_parser("doctor", help="look at devices, packages, disks, permissions, database and ports")
    doctor.add_argument("--home", type=Path, default=None, metavar="DIR", help="folder with config/ and state/")
    doctor.add_argument("--json", action="store_true", help="print JSON")
    doctor.set_defaults(run=run_doctor)

    completion = commands.add_parser("completion", help="print the completion script of a shell")
    completion.add_argument("shell", choices=("bash", "zsh", "fish"))
    completion.set_defaults(run=run_completion)


def _add_run(parser: argparse.ArgumentParser) -> None:
    help_text = "number or id of a run (default: the current or last one)"
    parser.add_argument("run_name", nargs="?", default=None, metavar="RUN", help=help_text)


def add_environments(commands: Commands, parent: argparse.ArgumentParser) -> None:
    env = commands.add_parser("env", help="create, list, show, edit, activate, copy, import and export environments")
    actions = env.add_subparsers(dest="action", required=True, metavar="ACTION")
    call(
        actions.add_parser("list", parents=[parent], help="list the environments; * marks the active one"), "environments.list_environments"
    )

    create = actions.add_parser("create", parents=[parent], help="make an environment with its datasets file")
    create.add_argument("name", metavar="NAME")
    create.add_argument("--family", dest="model_family", required=False, default=None, help=FAMILIES)
    create.add_argument("--flavour", dest="model_flavour", default=None)
    create.add_argument("--type", dest="model_type", default=None, choices=("lora", "full"), help="default: lora")
    create.add_argument("--lora-type", default=None, choices=("standard", "lycoris"))
    create.add_argument("--description", default=None)
    create.add_argument("--example", default=None, metavar="NAME", help="begin with a shipped example, such as flux_dev_lora")
    call(create, "environments.create_environment")

    show = actions.add_parser("show", parents=[parent], help="show the options of an environment")
    show.add_argument("name", nargs="?", metavar="NAME", help="default: the active one")
    call(show, "environments.show_environment")

    edit = actions.add_parser("edit", parents=[parent], help="change options, or open the configuration in EDITOR")
    edit.add_argument("name", nargs="?", metavar="NAME", help="default: the active one")
    add_options(edit, "an option to set; without any, an editor is opened")
    edit.add_argument("--unset", action="append", default=[], metavar="OPTION", help="an option to remove")
    edit.add_argument("--datasets", action="store_true", help="edit the datasets file instead")
    call(edit, "environments.edit_environment")

    activate = actions.add_parser("activate", parents=[parent], help="make it the environment that runs start from")
    activate.add_argument("name", metavar="NAME")
    call(activate, "environments.activate_environment")

    copy = actions.add_parser("copy", parents=[parent], help="copy an environment with its datasets and adapter file")
    copy.add_argument("name", metavar="NAME")
    copy.add_argument("target", metavar="NEW_NAME")
    call(copy, "environments.copy_environment")

    export = actions.add_parser("export", parents=[parent], help="print a configuration; secrets are ***")
    export.add_argument("name", metavar="NAME")
    export.add_argument("--output", type=Path, default=None, metavar="FILE", help="a new file to write it to")
    export.add_argument("--bare", action="store_true", help="without the metadata")
    call(export, "environments.export_environment")
    # `env import` is the command `import`, which cli.py adds.


def env_actions(commands: Commands) -> Commands:
    """The actions of ``env``, to add one."""
    found = commands.choices["env"]._subparsers
    assert found is not None
    [actions] = [one for one in found._group_actions if isinstance(one, argparse._SubParsersAction)]
    return actions


def run_call(arguments: argparse.Namespace) -> int:
    from simpletuner_site.client import connection, output
    from simpletuner_site.environment import BadEnvironment

    module, _, name = arguments.function.partition(".")
    function = getattr(import_module(f"simpletuner_site.client.{module}"), name)
    try:
        with connection.Api(connection.find(arguments.home, arguments.url)) as api:
            code: int = function(api, arguments)
            return code
    except connection.Refused as refusal:
        if arguments.json:
            output.print_json({"problems": [], **refusal.body, "detail": str(refusal)})
        else:
            output.print_refusal(str(refusal), refusal.body)
    except BrokenPipeError:  # `| head` has read enough; the interpreter must not complain about it at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (BadEnvironment, OSError) as error:
        output.print_refusal(str(error), {})
    except KeyboardInterrupt:
        return 130
    return EXIT_USAGE


def run_doctor(arguments: argparse.Namespace) -> int:
    from simpletuner_site.client.doctor import doctor

    return doctor(arguments)


def run_completion(arguments: argparse.Namespace) -> int:
    from simpletuner_site.client.completion import SCRIPTS

    sys.stdout.write(SCRIPTS[arguments.shell])
    return 0
