"""Daphne behind the gate, with a shutdown that does not wait for running requests."""

from __future__ import annotations

import asyncio
import io
import os
from http import HTTPStatus
from typing import Any

import daphne.server  # installs the reactor, so it comes before anything of Twisted
from daphne.http_protocol import HTTPFactory
from twisted.internet import defer, reactor, task
from twisted.web import http

from simpletuner_site.edge.channel import Channel
from simpletuner_site.edge.gate import SWEEP_SECONDS, Gate
from simpletuner_site.edge.uploads import BODY_FILE

CANCEL_SECONDS = 2.0
"""How long a shutdown waits for views, whose threads cannot be cancelled."""


class EdgeFactory(HTTPFactory):  # type: ignore[misc]
    """Creates a channel of the gate for each connection."""

    def buildProtocol(self, addr: Any) -> Channel:
        channel = Channel(self.server.gate)
        channel.factory = self
        return channel


class Server(daphne.server.Server):  # type: ignore[misc]
    """Serves an application behind a gate."""

    def __init__(self, gate: Gate, **options: Any) -> None:
        super().__init__(**options)
        self.gate = gate

    def run(self) -> None:
        daphne.server.HTTPFactory = EdgeFactory  # Daphne's own ``run`` looks this name up
        for status in HTTPStatus:  # Twisted does not know them all
            http.RESPONSES.setdefault(status.value, status.phrase.encode())
        clock: Any = reactor
        clock.callWhenRunning(task.LoopingCall(self.gate.sweep).start, SWEEP_SECONDS, now=False)
        super().run()

    def create_application(self, protocol: Any, scope: Any) -> Any:
        """Hand a body that lies in a file over as that file. Daphne, which would read all of it into memory, finds an empty one."""
        body = getattr(protocol, "body_file", None)
        if body is not None:
            body.flush()
            scope[BODY_FILE] = os.fdopen(os.dup(body.fileno()), "rb")  # Twisted closes its own when the client goes
            body.close()
            protocol.content = io.BytesIO()
        return super().create_application(protocol, scope)

    def kill_all_applications(self) -> Any:
        """Cancel running applications. Daphne's own method fails if a connection has sent half a request."""
        applications = [details.get("application_instance") for details in self.connections.values()]
        waiting = [one for one in applications if one is not None and not one.done()]
        for one in waiting:
            one.cancel()
        if not waiting:
            return None
        return defer.Deferred.fromFuture(asyncio.ensure_future(asyncio.wait(waiting, timeout=CANCEL_SECONDS)))
