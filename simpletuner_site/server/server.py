"""``simpletuner server``: Daphne in this process and a worker in another; one signal ends both."""

from __future__ import annotations

import fcntl
import ipaddress
import logging
import os
import socket
import threading
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from simpletuner_site.edge.gate import Gate

from simpletuner_site.server.greeting import ChosenToken, local_url, print_address, report_runs_that_go_on
from simpletuner_site.server.state import write_server_state
from trainer_engine.contract.atomic import PRIVATE_MODE

logger = logging.getLogger(__name__)

LOOPBACK_ADDRESSES = {"localhost": "127.0.0.1", "": "127.0.0.1"}
STREAMS_CLOSE_SECONDS = 0.2
LAST_SECONDS = 3.0
STREAMS_OF_CONNECTIONS = 0.75
"""The share of connections that event streams may hold; the others stay free for short requests."""
WAITING_CONNECTIONS = 512
"""Connections that the kernel queues before they are accepted."""


class CannotServe(Exception):
    """The server does not start; the message says why and what to do."""


def bind_address(host: str, *, has_token: bool = False) -> str:
    """The address to bind for ``--host``. Raises CannotServe for one that other machines could reach if there is no token."""
    address = LOOPBACK_ADDRESSES.get(host.strip().lower(), host.strip().strip("[]"))
    try:
        is_address, is_loopback = True, ipaddress.ip_address(address).is_loopback
    except ValueError:
        is_address = is_loopback = False
    if has_token and not is_address:
        raise CannotServe(f"--host {host}: give an address of this machine, such as 127.0.0.1 or 0.0.0.0.")
    if not is_loopback and not has_token:
        raise CannotServe(
            f"--host {host}: other machines could reach this address. Serving them needs a token: add --generate-token, or --token. "
            "An SSH tunnel to 127.0.0.1 needs none (docs/remote.md)."
        )
    return address


def check_port(address: str, port: int) -> None:
    """Raises CannotServe if the port is in use or not permitted."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError as error:
            raise CannotServe(f"Port {port} of {address} cannot be used: {error.strerror}. Choose another with --port.") from error


def claim_home(state: Path) -> IO[str]:
    """A lock on the home that lasts until the file is closed, because two servers on one home would start every run twice."""
    file = os.fdopen(os.open(state / "server.lock", os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, PRIVATE_MODE), "a")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise CannotServe(f"Another server already serves {state.parent}. Stop it, or choose another folder with --home.") from error
    return file


def serve(address: str, port: int, token: ChosenToken | None = None, *, has_worker: bool = True) -> int:
    """Serve until SIGTERM or SIGINT. Django must be set up. Without a token the address must be on loopback.

    Raises CannotServe, BadToken, OSError.
    """
    from django.conf import settings

    from simpletuner_site.edge.uploads import remove_leftovers
    from simpletuner_site.server.migrations_state import migrate_if_needed

    check_port(address, port)
    with claim_home(settings.STATE_DIR):
        remove_leftovers(settings.STATE_DIR)
        if token is not None:
            token.keep(settings.STATE_DIR)
        migrate_if_needed()
        write_server_state(settings.STATE_DIR, os.getpid(), local_url(address, port))
        _run_daphne(address, port, token, has_worker=has_worker)
        report_runs_that_go_on()
    _end_soon()
    return 0


def _end_soon() -> None:
    """Limit how long Python waits at exit for threads of views."""
    last = threading.Timer(LAST_SECONDS, os._exit, (0,))
    last.daemon = True
    last.start()


def _run_daphne(address: str, port: int, token: ChosenToken | None, *, has_worker: bool) -> None:
    from simpletuner_site.edge.server import Server  # isort: skip  # installs the reactor, so it comes before anything of Twisted
    from django.urls import get_resolver
    from twisted.internet import reactor

    from simpletuner_site.asgi import application
    from simpletuner_site.server.boot import freeze_garbage, share_interpreter
    from simpletuner_site.server.keeper import WorkerKeeper

    keeper = WorkerKeeper()
    interface = address.replace(":", "\\:")
    server = Server(
        _gate(),
        application=application,
        endpoints=[f"tcp:port={port}:interface={interface}:backlog={WAITING_CONNECTIONS}"],
        websocket_timeout=-1,  # a stream lasts as long as its client wants
        websocket_connect_timeout=10,
        application_close_timeout=5,
        server_name="SimpleTuner",
        verbosity=0,
    )
    running: Any = reactor
    if has_worker:
        running.callWhenRunning(keeper.start)
    running.callWhenRunning(print_address, address, port, token)
    share_interpreter()
    get_resolver().url_patterns  # noqa: B018  # loads every view now instead of at the first request
    freeze_garbage()
    running.addSystemEventTrigger("before", "shutdown", _close_streams)
    try:
        server.run()
    finally:
        keeper.stop()


def _gate() -> Gate:
    """The rules and the limits of every connection."""
    from django.conf import settings

    from simpletuner_site.asgi import BODY_BYTES, application
    from simpletuner_site.edge.gate import Gate, Limits, RequestRules, connection_limit, raise_descriptor_limit
    from simpletuner_site.edge.uploads import DiskSpace
    from training.streams import tail

    connections = connection_limit(raise_descriptor_limit())
    tail.HUB.most_streams = int(connections * STREAMS_OF_CONNECTIONS)
    limits = Limits(connections=connections, body_bytes=BODY_BYTES)
    return Gate(limits, RequestRules(application, BODY_BYTES).refusal, DiskSpace(settings.STATE_DIR, settings.KEPT_FREE_BYTES))


def _close_streams() -> Any:
    """Close streams before the shutdown, because Daphne crashes with open ones; the Deferred gives them time."""
    from twisted.internet import reactor, task

    from training.streams.tail import close_all

    close_all()
    clock: Any = reactor
    return task.deferLater(clock, STREAMS_CLOSE_SECONDS, lambda: None)
