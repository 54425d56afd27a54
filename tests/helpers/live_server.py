"""A real server on a real port, with its worker, for tests that talk to it from outside."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

from tests.helpers.ports import free_port

REPOSITORY = Path(__file__).resolve().parents[2]
START_SECONDS = 300.0
ANSWER_SECONDS = 300.0
PLAIN: dict[str, Any] = {"verify": False}
"""For clients of an http address: httpx would read every root certificate for each client, which takes 20 ms."""


@dataclass
class LiveServer:
    """``simpletuner server`` as a process. Use as a context manager, or call ``stop()``."""

    home: Path
    port: int
    slots: int | None = None
    environment: dict[str, str] = field(default_factory=dict)
    arguments: tuple[str, ...] = ()
    """Further ones of the command line."""
    open_files: int | None = None
    """The limit of open files, soft and hard, as ``ulimit -n`` sets it."""
    headers: dict[str, str] = field(default_factory=dict)
    """Sent with every request: the token of a server that needs one."""
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://localhost:{self.port}"

    @property
    def log(self) -> Path:
        """What the server and its worker print."""
        return self.home / "server.log"

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def start(self) -> LiveServer:
        """Start it and wait for the first answer."""
        environment = {name: value for name, value in os.environ.items() if name != "SIMPLETUNER_HOME"}
        environment |= {"PYTHONPATH": str(REPOSITORY), **self.environment}
        command = [sys.executable, "-m", "simpletuner_site.cli", "server", "--port", str(self.port), "--home", str(self.home)]
        command += [*(["--slots", str(self.slots)] if self.slots else []), *self.arguments]
        if self.open_files:
            command = ["/bin/sh", "-c", f'ulimit -n {self.open_files}; exec "$@"', "sh", *command]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, cwd=self.home, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        self.wait_until_ready()
        return self

    def wait_until_ready(self) -> None:
        """The worker counts too, unless there is to be none: without it jobs stay in the queue."""
        assert self.process is not None
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise RuntimeError(f"the server ended with {self.process.returncode}:\n{self.log.read_text()}")
            try:
                health = httpx.get(f"{self.url}/health", timeout=5, headers=self.headers, **PLAIN).json()
                if health["checks"]["workers"]["status"] == "healthy" or "--no-worker" in self.arguments:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.05)
        raise TimeoutError(f"no healthy answer within {START_SECONDS:g} s:\n{self.log.read_text()}")

    def processes(self) -> list[psutil.Process]:
        """The server, its worker and what that forked; not the engines, which run in sessions of their own."""
        try:
            server = psutil.Process(self.pid)
            every = [server, *server.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []
        return [process for process in every if not _is_engine(process)]

    @property
    def pids(self) -> list[int]:
        return [process.pid for process in self.processes()]

    def stop(self, timeout: float = 300.0) -> int:
        """SIGTERM; the exit code. Harmless when it has ended."""
        if self.process is None:
            return 0
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout)

    def kill9(self) -> None:
        """SIGKILL to the server and everything of it at once; runs that train stay alive."""
        doomed = self.processes()
        for process in doomed:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                pass
        if self.process is not None:
            self.process.wait(10)
        psutil.wait_procs(doomed, timeout=10)

    def restart(self) -> LiveServer:
        """Start again on the same home and port; ends a server that still runs."""
        self.stop()
        return self.start()

    def get(self, path: str, **kwargs: Any) -> httpx.Response:
        return httpx.get(self.url + path, timeout=ANSWER_SECONDS, **PLAIN, **self._with_headers(kwargs))

    def post(self, path: str, **kwargs: Any) -> httpx.Response:
        return httpx.post(self.url + path, timeout=ANSWER_SECONDS, **PLAIN, **self._with_headers(kwargs))

    def client(self, **kwargs: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=ANSWER_SECONDS, **PLAIN, **self._with_headers(kwargs))

    def _with_headers(self, options: dict[str, Any]) -> dict[str, Any]:
        return {**options, "headers": {**self.headers, **(options.get("headers") or {})}} if self.headers else options

    def __enter__(self) -> LiveServer:
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()
        self.kill_runs()

    def kill_runs(self) -> None:
        """Runs outlive their server: one that a failed test leaves behind would train for ever."""
        runs = f"{self.home.resolve()}/state/runs/"
        for process in psutil.process_iter():
            try:
                if any(argument.startswith(runs) for argument in process.cmdline()):
                    process.kill()
            except psutil.Error:
                continue


def _is_engine(process: psutil.Process) -> bool:
    try:
        return any(argument.startswith("trainer_engine") for argument in process.cmdline())
    except psutil.Error:
        return False


def start_server(
    home: Path,
    *,
    slots: int | None = None,
    port: int | None = None,
    environment: dict[str, str] | None = None,
    arguments: tuple[str, ...] = (),
    open_files: int | None = None,
) -> LiveServer:
    """A server that answers and has a worker. ``environment`` is added to the variables of this process (``{"HF_HOME": …}``)."""
    home.mkdir(parents=True, exist_ok=True)
    return LiveServer(home, port or free_port(), slots, environment or {}, arguments=arguments, open_files=open_files).start()
