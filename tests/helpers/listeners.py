"""Clients of the event stream that stay: they reconnect where they were, over any restart of the server."""

from __future__ import annotations

import json
import threading
import time
from collections import defaultdict
from typing import Any

import httpx
from websockets.exceptions import InvalidHandshake, WebSocketException
from websockets.sync.client import connect

STREAM = "/api/training/events/stream"
PAUSE_SECONDS = 0.1
PATIENCE = httpx.Timeout(10, read=1.5)
"""After that much silence a listener connects again: it may not lose or double anything by that."""


class Listener(threading.Thread):
    """Hears everything from the first job on; ``heard``: job id -> its events in the order in which they came."""

    def __init__(self, port: int, job_id: str = "") -> None:
        super().__init__(daemon=True)
        self.port, self.job_id = port, job_id
        self.heard: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self.jobs: list[str] = []
        self.connections = 0
        self._should_end = threading.Event()

    def run(self) -> None:
        while not self._should_end.is_set():
            try:
                self.listen()
            except (OSError, httpx.TransportError, WebSocketException, InvalidHandshake, TimeoutError):
                pass
            time.sleep(PAUSE_SECONDS)

    def listen(self) -> None:
        raise NotImplementedError

    def take(self, job_id: str, event: dict[str, Any]) -> bool:
        """Whether to go on listening."""
        if job_id not in self.heard:
            self.jobs.append(job_id)
        self.heard[job_id].append(event)
        return not self._should_end.is_set()

    def wait_for(self, job_id: str, count: int, seconds: float = 300) -> list[dict[str, Any]]:
        """What was heard of a job, once it is that much."""
        deadline = time.monotonic() + seconds
        while len(self.heard.get(job_id, [])) < count and time.monotonic() < deadline:
            time.sleep(0.02)
        return list(self.heard[job_id])

    def end(self) -> None:
        self._should_end.set()
        self.join(20)


class SocketListener(Listener):
    """A WebSocket bound to one job, or to whichever is the current one; it resumes by ``since_index``."""

    def listen(self) -> None:
        job_id = self.job_id or (self.jobs[-1] if self.jobs else "")
        query = f"?job_id={job_id}&since_index={len(self.heard[job_id])}" if self.job_id else self._where()
        with connect(f"ws://localhost:{self.port}{STREAM}{query}", max_size=None, open_timeout=10) as socket:
            self.connections += 1
            while not self._should_end.is_set():
                try:
                    frame = json.loads(socket.recv(timeout=0.5))
                except TimeoutError:
                    continue
                self.take(frame["job_id"], frame["event"])

    def _where(self) -> str:
        """A stream that is not bound to a job resumes by the id that an SSE stream would have given."""
        if not self.jobs:
            return ""
        last = self.jobs[-1]
        return f"?last_event_id={last}:{self.heard[last][-1]['index']}"


class SourceListener(Listener):
    """Server-sent events, resumed by ``Last-Event-ID`` as a browser does."""

    last_event_id = ""

    def listen(self) -> None:
        headers = {"Last-Event-ID": self.last_event_id} if self.last_event_id else {}
        query = f"?job_id={self.job_id}" if self.job_id else ""
        with httpx.stream("GET", f"http://localhost:{self.port}{STREAM}{query}", headers=headers, timeout=PATIENCE, verify=False) as answer:
            answer.raise_for_status()
            self.connections += 1
            fields: dict[str, str] = {}
            for line in answer.iter_lines():
                name, _, value = line.partition(": ")
                if line and name:
                    fields[name] = value
                elif "data" in fields:
                    event = json.loads(fields["data"])
                    assert fields["event"] == event["type"]
                    self.last_event_id = fields["id"]
                    fields = {}
                    if not self.take(event["job_id"], event):
                        return
