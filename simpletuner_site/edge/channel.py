"""One connection: Twisted's HTTP channel, which checks a request after its headers and limits its time and size.

Daphne calls the application after the complete body has arrived, so earlier checks happen here. A body is held in memory, that of an
upload in a file: a long one needs one of the gate's few slots.
"""

from __future__ import annotations

import io
import tempfile
import time
from contextlib import suppress
from enum import Enum
from http import HTTPStatus
from typing import IO, Any
from urllib.parse import unquote

from daphne.http_protocol import WebRequest
from twisted.internet.error import ConnectionDone
from twisted.python.failure import Failure
from twisted.web import http

from simpletuner_site.edge.gate import Gate
from simpletuner_site.edge.refusals import Refusal, response_bytes, too_long
from simpletuner_site.edge.uploads import FULL_DISK, is_upload
from simpletuner_site.security.requests import Scope
from training.streams.backpressure import unsent_bytes

UNREADABLE = Refusal(HTTPStatus.BAD_REQUEST, "The request could not be read as HTTP/1.1.")
LONG_HEAD = Refusal(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "The request line and the headers are longer than 16 KiB.")
BAD_TARGET = Refusal(HTTPStatus.BAD_REQUEST, "The request target must be ASCII and begin with a slash: GET /health HTTP/1.1.")
SOCKET_BODY = Refusal(HTTPStatus.BAD_REQUEST, "A WebSocket handshake has no body.")
SLOW_HEAD = Refusal(HTTPStatus.REQUEST_TIMEOUT, "The headers of the request did not arrive in time.")
SLOW_BODY = Refusal(HTTPStatus.REQUEST_TIMEOUT, "The body of the request did not arrive in time.")
CROWDED = Refusal(HTTPStatus.SERVICE_UNAVAILABLE, "Too many connections are open. Try again in a moment.", retry_after_seconds=1)
BUSY = Refusal(HTTPStatus.SERVICE_UNAVAILABLE, "Too many long requests are in progress. Try again in a moment.", retry_after_seconds=1)
LONGEST_LENGTH_DIGITS = 18
ROOT_PATH = b"daphne-root-path"
"""Daphne trusts this header of a client for the root path of the application."""
CLOSED: Any = Failure(ConnectionDone())  # type: ignore[no-untyped-call]


class Phase(Enum):
    """What a connection waits for. Connections with lower values are closed first when the server is full."""

    CLOSING = 0
    """Waits for the client to read the answer or to stop sending."""
    IDLE = 1
    """Waits for a request."""
    HEAD = 2
    BODY = 3
    ANSWERING = 4
    """Waits for the application, without a limit: an event stream may last for days."""


class Request(WebRequest):  # type: ignore[misc]
    """A request whose body is counted while it arrives."""

    received_bytes = 0
    longest_bytes = 0
    """Limit of the body."""
    body_file: IO[bytes] | None = None
    """Where the body of an upload is written."""

    def gotLength(self, length: int | None) -> None:
        self.content = self.body_file or io.BytesIO()

    def handleContentChunk(self, data: bytes) -> None:
        self.received_bytes += len(data)
        if self.channel.takes_body(self.received_bytes):
            try:
                self.content.write(data)
            except OSError:
                self.channel.refuse(FULL_DISK)

    def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:
        """Process the request as Twisted does, but leave forms to Django, which explains what is wrong with one."""
        if self.requestHeaders.hasHeader(b"transfer-encoding"):
            # The chunks are decoded now (RFC 9112, 7.1.3). Django takes a body without a length for an empty one.
            self.requestHeaders.removeHeader(b"transfer-encoding")
            self.requestHeaders.setRawHeaders(b"content-length", [str(self.received_bytes).encode()])
        try:
            self.content.seek(0, 0)  # writes what is left in the buffer
        except OSError:
            self.channel.refuse(FULL_DISK)
            return
        self.args: dict[bytes, list[bytes]] = {}
        self.method, self.uri, self.clientproto = command, path, version
        self.path = path.partition(b"?")[0]
        self.process()


HTTPChannel: Any = http.HTTPChannel  # most of it is untyped


class Channel(HTTPChannel):  # type: ignore[misc]
    """A connection of the gate."""

    timeOut = None  # the gate enforces the time limits
    requestFactory = Request

    def __init__(self, gate: Gate) -> None:
        super().__init__()
        self._gate = gate
        self._phase = Phase.IDLE
        self.since = time.monotonic()
        self._is_refused = False
        self._dropped_bytes = 0
        self._unsent = 0

    # ---- called by the gate ----
    @property
    def is_open(self) -> bool:
        return bool(self.transport.connected)

    @property
    def rank(self) -> int | None:
        return None if self._is_upgraded or self._phase is Phase.ANSWERING else self._phase.value

    @property
    def _is_upgraded(self) -> bool:
        """Whether this is a WebSocket now, which uses pings instead."""
        return getattr(self.transport, "protocol", self) is not self

    def evict(self) -> None:
        self._close_now(CROWDED if self._phase in (Phase.HEAD, Phase.BODY) else None)

    def _close_now(self, refusal: Refusal | None) -> None:
        """Free the descriptor at once: Twisted accepts many connections in one turn of the loop, before it closes any."""
        self._is_refused = True
        if refusal is not None:
            self.transport.writeSomeData(response_bytes(refusal))
        self.transport.connectionLost(CLOSED)

    def check_time(self, now: float) -> None:
        if self._is_upgraded:
            return
        limits, waited = self._gate.limits, now - self.since
        if self._phase is Phase.IDLE and waited > limits.idle_seconds:
            self.loseConnection()
        elif self._phase is Phase.HEAD and waited > limits.head_seconds:
            self.refuse(SLOW_HEAD)
        elif self._phase is Phase.BODY:
            received = self.requests[-1].received_bytes
            if waited > limits.body_seconds + received / limits.body_bytes_a_second:
                self.refuse(SLOW_BODY)
        elif self._phase is Phase.CLOSING:
            self._check_closing(now, waited)

    def _check_closing(self, now: float, waited: float) -> None:
        unsent, before = unsent_bytes(self.transport), self._unsent
        self._unsent = unsent
        if unsent < before:
            self.since = now
        elif waited > (self._gate.limits.linger_seconds if self._is_refused and not unsent else self._gate.limits.stall_seconds):
            self.transport.abortConnection()

    # ---- refusing ----
    def refuse(self, refusal: Refusal) -> None:
        """Answer and keep reading for a moment: after an immediate close the kernel would discard the answer."""
        if self._is_refused:
            return
        self._is_refused = True
        self._gate.return_body_slot(self)
        for request in self.requests:
            request.content = None
            if request.body_file is not None:
                with suppress(OSError):  # on a full disk the rest of its buffer cannot be written
                    request.body_file.close()
        head_only = getattr(self, "_command", b"") == b"HEAD"
        self.transport.write(response_bytes(refusal, as_page=self._asks_for_page(), without_body=head_only))
        self._enter(Phase.CLOSING)
        self.transport.loseWriteConnection()

    def _asks_for_page(self) -> bool:
        accepted = self.requests[-1].requestHeaders.getRawHeaders(b"accept", [b""]) if self.requests else [b""]
        return b"text/html" in b",".join(accepted)

    def _drop(self, data: bytes) -> None:
        """Discard data of a refused request, and abort the connection if there is too much."""
        self._dropped_bytes += len(data)
        if self._dropped_bytes > 2 * self._gate.limits.body_bytes.usual:
            self.transport.abortConnection()

    def _judge(self) -> Refusal | None:
        """The refusal that follows from the headers, or None."""
        request = self.requests[-1]
        target = self._path.partition(b"?")[0]
        if not target.startswith(b"/") or not self._path.isascii():
            return BAD_TARGET
        request.requestHeaders.removeHeader(ROOT_PATH)
        peer = self.transport.getPeer()
        names = request.requestHeaders.getAllRawHeaders()
        upgrade = request.requestHeaders.getRawHeaders(b"upgrade", [b""])[0]
        scope: Scope = {
            "type": "websocket" if upgrade.lower() == b"websocket" else "http",
            "method": self._command.decode("ascii"),
            "path": unquote(target.decode("latin-1")),
            "headers": [(name.lower(), value) for name, values in names for value in values],
            "client": (peer.host, peer.port),
        }
        refusal = self._gate.refusal(scope)
        if refusal is None and scope["type"] == "websocket" and self.length != 0:
            return SOCKET_BODY
        if refusal is None and (self.length or 0) > self._gate.limits.small_body_bytes and not self._gate.take_body_slot(self):
            return BUSY
        request.longest_bytes = self._gate.limits.body_bytes.of(scope)
        if refusal is None and is_upload(scope) and (self.length is None or self.length > self._gate.limits.small_body_bytes):
            return self._open_file(request)
        return refusal

    def _open_file(self, request: Request) -> Refusal | None:
        """Have the body of an upload written to a file, for which it needs a slot: a file takes a descriptor and space on the disk.

        One without a length may become as long as the limit.
        """
        disk = self._gate.disk
        if not self._gate.take_body_slot(self):
            return BUSY
        if not disk.keep(self, request.longest_bytes if self.length is None else self.length):
            return FULL_DISK
        try:
            request.body_file = tempfile.TemporaryFile(dir=disk.folder)  # noqa: SIM115 - it is closed with the request
        except OSError:
            return FULL_DISK
        return None

    def takes_body(self, received_bytes: int) -> bool:
        """Whether a body of this many bytes so far may continue."""
        limits = self._gate.limits
        if self._is_refused:
            return False
        longest = self.requests[-1].longest_bytes
        if received_bytes > longest:
            self.refuse(too_long(longest))
        elif received_bytes > limits.small_body_bytes and not self._gate.take_body_slot(self):
            self.refuse(BUSY)
        return not self._is_refused

    # ---- called by Twisted ----
    def _enter(self, phase: Phase) -> None:
        self._phase, self.since = phase, time.monotonic()

    def connectionMade(self) -> None:
        super().connectionMade()
        if not self._gate.enter(self):
            self._close_now(CROWDED)

    def dataReceived(self, data: bytes) -> None:
        if self._is_refused:
            self._drop(data)
            return
        if self._phase is Phase.IDLE:
            self._enter(Phase.HEAD)
        super().dataReceived(data)

    def lineReceived(self, line: bytes) -> None:
        if not self._is_refused:
            super().lineReceived(line)

    def rawDataReceived(self, data: bytes) -> None:
        if self._is_refused:
            self._drop(data)
        else:
            super().rawDataReceived(data)

    def lineLengthExceeded(self, line: bytes) -> None:
        self.refuse(LONG_HEAD)

    def _respondToBadRequestAndDisconnect(self) -> None:
        self.refuse(LONG_HEAD if self._receivedHeaderSize > self.totalHeadersSize else UNREADABLE)

    def _maybeChooseTransferDecoder(self, header: bytes, data: bytes) -> bool:
        if header == b"Content-Length" and len(data) > LONGEST_LENGTH_DIGITS:
            self.refuse(too_long(self._gate.limits.body_bytes.usual))
            return False
        return bool(super()._maybeChooseTransferDecoder(header, data))

    def allHeadersReceived(self) -> None:
        refusal = self._judge()
        if refusal is not None:
            self.refuse(refusal)
            return
        self._enter(Phase.BODY)
        super().allHeadersReceived()

    def allContentReceived(self) -> None:
        if not self._is_refused:
            self._enter(Phase.ANSWERING)
            super().allContentReceived()

    def requestDone(self, request: Request) -> None:
        self._gate.return_body_slot(self)
        self._enter(Phase.IDLE)
        super().requestDone(request)

    def loseConnection(self) -> None:
        if self._phase is not Phase.CLOSING:
            self._enter(Phase.CLOSING)
        super().loseConnection()

    def connectionLost(self, reason: Any) -> None:
        self._gate.leave(self)
        super().connectionLost(reason)
