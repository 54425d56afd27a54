"""The server under attack, with an environment that could train, and what tells whether an attack got through."""

from __future__ import annotations

import http.client
import json
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from tests.helpers.live_server import PLAIN, LiveServer, start_server
from tests.helpers.served_runs import ENDED, JSON, ServedRuns, wait_until

STATUS = "/api/training/status"
SECOND_LOOKS = 0.02
"""Seconds between two questions of the watch."""


@dataclass
class Watch:
    """Asks for the status of the server all the while, on a connection of its own."""

    port: int
    seconds: list[float] = field(default_factory=list)
    """How long each answer took."""
    failures: list[str] = field(default_factory=list)
    """What came in place of an answer of 200."""

    def run(self, done: threading.Event) -> None:
        while not done.is_set():
            started = time.perf_counter()
            try:
                connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
                connection.request("GET", STATUS)
                answer = connection.getresponse()
                answer.read()
                connection.close()
                if answer.status != 200:
                    self.failures.append(f"status answered {answer.status}")
            except (OSError, http.client.HTTPException) as error:
                self.failures.append(f"status did not answer: {error!r}")
            self.seconds.append(time.perf_counter() - started)
            done.wait(SECOND_LOOKS)


@dataclass
class Target:
    """A served home below an allowed root. ``place`` is a folder that the attacker may name, ``model`` a small base model."""

    server: LiveServer
    place: Path
    runs: ServedRuns
    environments: int = 0

    @classmethod
    def start(cls, place: Path, **variables: str) -> Target:
        place.mkdir(parents=True, exist_ok=True)
        server = start_server(place / "home", environment=variables)
        return cls(server, place, ServedRuns(server, place / "data"))

    # ---- what an attacker does ----
    def get(self, path: str, **how: Any) -> httpx.Response:
        return self.server.get(path, **({"headers": JSON} | how))

    def post(self, path: str, **how: Any) -> httpx.Response:
        return self.server.post(path, **({"headers": JSON} | how))

    def put(self, path: str, body: Any) -> httpx.Response:
        with self.client() as client:
            return client.put(path, json=body)

    def client(self, seconds: float = 60, **how: Any) -> httpx.Client:
        """A client that waits that long for an answer, and asks for JSON."""
        return httpx.Client(base_url=self.server.url, timeout=seconds, **({"headers": JSON} | PLAIN | how))

    def form(self, output: str, **options: Any) -> dict[str, Any]:
        """Everything that a quick run needs, and these options over it."""
        return self.runs.form(output) | options

    def environment(self, **options: Any) -> str:
        """The name of a new environment with these options over those of a quick run."""
        self.environments += 1
        name = f"victim-{self.environments}"
        config = {f"--{key}": value for key, value in self.form(f"out-{self.environments}", **options).items()}
        new = {"name": name, "model_family": "pixart_sigma", "model_type": "full"}
        self.post("/api/configs/environments", json=new).raise_for_status()
        self.put(f"/api/configs/{name}", {"name": name, "config": config})
        return name

    def validate(self, output: str = "validated", **options: Any) -> httpx.Response:
        return self.post("/api/training/validate", data=self.form(output, **options))

    def start_run(self, output: str, **options: Any) -> tuple[httpx.Response, dict[str, Any]]:
        """The answer to a start and, where it was accepted, the job at its end."""
        answer = self.post("/api/training/start", data=self.form(output, **options))
        if answer.status_code != 200:
            return answer, {}
        job_id = answer.json()["job_id"]
        return answer, wait_until(lambda: (job := self.runs.job(job_id))["status"] in ENDED and job, f"the end of {job_id}")

    def raw(self, content: bytes, *, seconds: float = 10, wait: bool = True) -> bytes:
        """Bytes to the port; what came back until the server closed or was silent for ``seconds``."""
        with socket.create_connection(("127.0.0.1", self.server.port), timeout=seconds) as connection:
            try:
                connection.sendall(content)
            except OSError:
                pass
            return drain(connection) if wait else b""

    # ---- what tells ----
    def canary(self, name: str) -> Path:
        """A file that only executed code makes."""
        path = self.place / f"pwned-{name}"
        path.unlink(missing_ok=True)
        return path

    @contextmanager
    def watched(self) -> Iterator[Watch]:
        watch, done = Watch(self.server.port), threading.Event()
        thread = threading.Thread(target=watch.run, args=(done,), daemon=True)
        thread.start()
        try:
            yield watch
        finally:
            done.set()
            thread.join(15)

    def revive(self) -> bool:
        """Whether the server had to be killed and started again, since it answered nobody any more."""
        try:
            httpx.get(self.server.url + STATUS, timeout=10, **PLAIN)
            return False
        except httpx.TransportError:
            self.server.kill9()
            self.server.start()
            return True

    def end_runs(self) -> None:
        self.runs.end_all()
        active = self.get("/api/configs/active").json().get("name")
        assert active is None or active, active

    def stop(self) -> None:
        try:
            self.runs.end_all()
            self.server.stop()
        finally:
            self.server.kill9()
            self.server.kill_runs()
            shutil.rmtree(self.place, ignore_errors=True)


def drain(connection: socket.socket) -> bytes:
    """Everything until the peer closes, resets, or is silent for the socket's time limit."""
    parts = []
    try:
        while part := connection.recv(65536):
            parts.append(part)
    except OSError:
        pass
    return b"".join(parts)


def status_of(answer: bytes) -> int:
    """The code of an HTTP answer; 0 where there was none."""
    first = answer.split(b"\r\n", 1)[0].split()
    return int(first[1]) if len(first) > 1 and first[1].isdigit() else 0


def store_at(address: str) -> str:
    """``publishing_config`` of one bucket there, which is read without a login."""
    keys = {"access_key": "a", "secret_key": "b"}
    return json.dumps([{"provider": "s3", "bucket": "b", **keys, "endpoint_url": address, "public_base_url": address}])
