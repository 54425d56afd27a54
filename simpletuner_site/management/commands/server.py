"""``python manage.py server``: the same as ``simpletuner server``."""

from __future__ import annotations

import os
import sys
from typing import Any

from django.core.management.base import BaseCommand, CommandParser


class Command(BaseCommand):
    """Starts a new interpreter, because ``--home`` decides which settings are read."""

    help = "Serve the API and run a worker (the same as `simpletuner server`)."
    requires_system_checks = []

    def add_arguments(self, parser: CommandParser) -> None:
        from simpletuner_site.cli import add_server_arguments

        add_server_arguments(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        command = [sys.executable, "-m", "simpletuner_site.cli", "server", "--port", str(options["port"]), "--host", options["host"]]
        for name in ("home", "slots"):
            if options[name] is not None:
                command += [f"--{name}", str(options[name])]
        for name, option in (("root", "root"), ("allowed_host", "allowed-host")):
            for value in options[name]:
                command += [f"--{option}", str(value)]
        if options["token"] is not None:
            command += ["--token", *filter(None, [options["token"]])]
        command += ["--no-worker"] if options["no_worker"] else []
        command += ["--generate-token"] if options["generate_token"] else []
        command += ["--allow-scripts"] if options["allow_scripts"] else []
        sys.stdout.flush()
        os.execv(sys.executable, command)
