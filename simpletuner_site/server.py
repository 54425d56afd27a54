"""``simpletuner server``: Daphne in this process, a worker beside it, both gone when one signal comes."""

from __future__ import annotations

import fcntl
import ipaddress
import logging
import os
import socket
import sys
from pathlib import Path
from typing import IO, Any

from trainer_engine.contract.atomic import PRIVATE_MODE

logger = logging.getLogger(__name__)

LOOPBACK_ADDRESSES = {"localhost": "127.0.0.1", "": "127.0.0.1"}
STREAMS_CLOSE_SECONDS = 0.2


class CannotServe(Exception):
    """The server does not start; the message says why and what to do."""


def loopback_address(host: str) -> str:
    """The address to bind for ``--host``. Raises CannotServe for any that other machines could reach."""
    address = LOOPBACK_ADDRESSES.get(host.strip().lower(), host.strip().strip("[]"))
    try:
        is_loopback = ipaddress.ip_address(address).is_loopback
    except ValueError:
        is_loopback = False
    if not is_loopback:
        raise CannotServe(
            f"--host {host}: other machines could reach this address, and whoever reaches the API can run programs here. "
            "Serving them needs a token, which this version does not offer yet: use 127.0.0.1, and an SSH tunnel from elsewhere."
        )
    return address


def check_port(address: str, port: int) -> None:
    """Raises CannotServe where the port is taken or not ours to take."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError as error:
            raise CannotServe(f"Port {port} of {address} cannot be used: {error.strerror}. Choose another with --port.") from error


def claim_home(state: Path) -> IO[str]:
    """A lock that lives as long as the file stays open: two servers on one home would start every run twice."""
    file = os.fdopen(os.open(state / "server.lock", os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, PRIVATE_MODE), "a")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise CannotServe(f"Another server already serves {state.parent}. Stop it, or choose another folder with --home.") from error
    return file


def serve(address: str, port: int) -> int:
    """Serve until SIGTERM or SIGINT. Django is set up; the address is one of loopback."""
    from django.conf import settings

    from simpletuner_site.migrations_state import migrate_if_needed

    check_port(address, port)
    with claim_home(settings.STATE_DIR):
        migrate_if_needed()
        _run_daphne(address, port)
    return 0


def _run_daphne(address: str, port: int) -> None:
    import daphne.server  # installs the reactor, so it comes before anything of Twisted
    from twisted.internet import reactor

    from simpletuner_site.asgi import application
    from simpletuner_site.web_request import leave_forms_to_django
    from simpletuner_site.worker_keeper import WorkerKeeper

    leave_forms_to_django()
    keeper = WorkerKeeper()
    interface = address.replace(":", "\\:")
    server = daphne.server.Server(
        application=application,
        endpoints=[f"tcp:port={port}:interface={interface}"],
        websocket_timeout=-1,  # a stream lasts as long as its client wants
        websocket_connect_timeout=10,
        application_close_timeout=5,
        server_name="SimpleTuner",
        verbosity=0,
    )
    running: Any = reactor
    running.callWhenRunning(keeper.start)
    running.callWhenRunning(_say_where, address, port)
    running.addSystemEventTrigger("before", "shutdown", _close_streams)
    try:
        server.run()
    finally:
        keeper.stop()


def _say_where(address: str, port: int) -> None:
    shown = f"[{address}]" if ":" in address else ("localhost" if address == "127.0.0.1" else address)
    print(
        f"SimpleTuner serves http://{shown}:{port}  (documentation: http://{shown}:{port}/docs; Ctrl-C ends it)",
        file=sys.stderr,
        flush=True,
    )


def _close_streams() -> Any:
    """Daphne crashes when it ends with streams open; the Deferred gives them the time to leave."""
    from twisted.internet import reactor, task

    from training.stream import close_all

    close_all()
    clock: Any = reactor
    return task.deferLater(clock, STREAMS_CLOSE_SECONDS, lambda: None)
