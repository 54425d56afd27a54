"""The server: how soon it answers, what it weighs, how many requests it serves, how fast an event travels."""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil

from tests.bench.load import measure
from tests.bench.table import Table
from tests.helpers.live_server import REPOSITORY, LiveServer, start_server
from tests.helpers.ports import free_port

SECTION = "server"


def processes_of(server: LiveServer) -> list[psutil.Process]:
    """The web process first, then everything it started."""
    web = psutil.Process(server.pid)
    return [web, *web.children(recursive=True)]


def torch_is_mapped(process: psutil.Process) -> bool:
    """Whether a process has torch's libraries in its memory."""
    with contextlib.suppress(psutil.Error):
        return any("libtorch" in mapped.path for mapped in process.memory_maps())
    return False


def seconds_to_first_answer(home: Path) -> float:
    """From the start of the process to the first 200, asked every few milliseconds."""
    server = LiveServer(home, free_port())
    command = [sys.executable, "-m", "simpletuner_site.cli", "server", "--port", str(server.port), "--home", str(home)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    began = time.perf_counter()
    with (home / "server.log").open("ab") as log:
        server.process = subprocess.Popen(command, cwd=home, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        while server.process.poll() is None:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{server.url}/api/training/status", timeout=10).status_code == 200:
                    return time.perf_counter() - began
            time.sleep(0.005)
        raise RuntimeError(server.log.read_text())
    finally:
        server.stop()


@contextlib.contextmanager
def _home() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="bench-home-") as folder:
        yield Path(folder)


def starting_and_weight(table: Table) -> None:
    """Start to first 200 (a home that was used before), memory when idle, torch in no process."""
    with _home() as home:
        with start_server(home):
            pass
        seconds = [seconds_to_first_answer(home) for _ in range(5)]
        table.add(SECTION, "process start to first 200", f"{statistics.median(seconds):.2f} s", aim="under 2 s", beside="SimpleTuner 75 s")
        with start_server(home) as server:
            time.sleep(3)
            processes = processes_of(server)
            megabytes = processes[0].memory_info().rss / 1e6
            beside = "SimpleTuner 1,236 MB"
            table.add(SECTION, "resident memory of the web process, idle", f"{megabytes:.0f} MB", aim="under 120 MB", beside=beside)
            mapped = sum(torch_is_mapped(process) for process in processes)
            table.add(SECTION, "server processes that map torch", f"{mapped} of {len(processes)}", aim="0")


def requests(table: Table) -> None:
    """Requests a second for status and events, at 1 and 16 connections."""
    beside = {"status": ("266", "220"), "events": ("229", "306")}
    with _home() as home, start_server(home) as server:
        for name, path in (("status", "/api/training/status"), ("events", "/api/training/events?since_index=0")):
            measure(server.port, path, connections=1, seconds=0.5)
            for connections, other in zip((1, 16), beside[name], strict=True):
                load = measure(server.port, path, connections=connections)
                assert load.statuses == {200}, load.statuses
                figure = f"{name} requests a second, idle server, {connections} connection{'s' if connections > 1 else ''}"
                table.add(SECTION, figure, f"{load.requests_per_second:.0f}", beside=f"SimpleTuner {other}")


def run(table: Table) -> None:
    starting_and_weight(table)
    requests(table)
