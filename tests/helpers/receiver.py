"""A server that webhooks are posted to, which answers as a test wants."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Posted:
    """One request that came."""

    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Receiver:
    """Change ``behaviour`` at any time: an HTTP status, ``hang``, ``redirect`` or ``endless``."""

    url: str = ""
    behaviour: int | str = 200
    came: list[Posted] = field(default_factory=list)

    @property
    def arrived(self) -> list[Posted]:
        """Those that were answered with success."""
        return [one for one in self.came if one.headers.get("answered") == "200"]


def _handler(receiver: Receiver) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            behaviour = receiver.behaviour
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            receiver.came.append(Posted(self.path, {**dict(self.headers), "answered": str(behaviour)}, body))
            if behaviour == "hang":
                time.sleep(3)
                self.close_connection = True
                return
            self.send_response(200 if behaviour == "endless" else 302 if behaviour == "redirect" else int(behaviour))
            if behaviour == "redirect":
                self.send_header("Location", "/elsewhere")
            if behaviour != "endless":
                self.send_header("Content-Length", "0")
            self.end_headers()
            if behaviour == "endless":
                self._pour()

        def _pour(self) -> None:
            self.close_connection = True
            try:
                while True:
                    self.wfile.write(b"x" * 65536)
            except OSError:
                return

        def log_message(self, *_: Any) -> None:
            return

    return Handler


@contextmanager
def receiving() -> Iterator[Receiver]:
    receiver = Receiver()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(receiver))
    server.daemon_threads = True
    receiver.url = f"http://127.0.0.1:{server.server_address[1]}/hook"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield receiver
    finally:
        server.shutdown()
        server.server_close()
