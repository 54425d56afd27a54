"""How late the slowest hundredth of the answers comes: under ``wrk``, and beside clients that replay a long log."""

from __future__ import annotations

import http.client
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.bench.table import NOT_MEASURED, Table
from tests.helpers.live_server import REPOSITORY, LiveServer, start_server

SECTION = "latency"
SECONDS = 8
LOGGED = 50_000
PAUSE_SECONDS = 0.005
STATUS = "/api/training/status"
AIMS = {1: "p99 under 5 ms"}
LATENCY = re.compile(r"^\s*(50|99)%\s+([\d.]+)(us|ms|s)\s*$", re.MULTILINE)
MILLISECONDS = {"us": 1e-3, "ms": 1.0, "s": 1e3}


def latencies(report: str) -> dict[int, float]:
    """Percentile -> milliseconds, of what wrk prints."""
    return {int(percent): float(number) * MILLISECONDS[unit] for percent, number, unit in LATENCY.findall(report)}


def under_wrk(table: Table, server: LiveServer) -> None:
    """One row a number of connections; one row that says so where there is no wrk."""
    wrk = shutil.which("wrk")
    if wrk is None:
        table.add(SECTION, "needs wrk", NOT_MEASURED)
        return
    for connections in (1, 16):
        command = [wrk, "-t1", f"-c{connections}", f"-d{SECONDS}s", "--latency", f"{server.url}{STATUS}"]
        found = latencies(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        name = f"status under wrk, {connections} connection{'s' if connections > 1 else ''}: p50 and p99"
        table.add(SECTION, name, f"{found[50]:.2f} and {found[99]:.2f} ms", aim=AIMS.get(connections, ""))


def long_log(server: LiveServer) -> str:
    """The id of a job with LOGGED events, written by another process."""

    def write(*arguments: str) -> str:
        command = [sys.executable, str(REPOSITORY / "tests/helpers/write_log.py"), *arguments]
        environment = {**os.environ, "SIMPLETUNER_HOME": str(server.home)}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()

    job_id = write("new", "completed")
    write("fill", job_id, str(LOGGED))
    return job_id


@contextmanager
def replays(server: LiveServer, job_id: str, count: int) -> Iterator[None]:
    """So many clients that read the whole log as server-sent events, again and again."""
    script = (
        f"while :; do curl -sN -m 600 '{server.url}/api/training/events/stream?job_id={job_id}' | head -n {2 * LOGGED} > /dev/null; done"
    )
    clients = [subprocess.Popen(["sh", "-c", script], start_new_session=True) for _ in range(count)]
    try:
        yield
    finally:
        for client in clients:
            os.killpg(client.pid, 9)
            client.wait()


def asked(server: LiveServer) -> list[float]:
    """How many milliseconds each answer took, asked one after the other on one connection."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port)
    found, end = [], time.perf_counter() + SECONDS
    while time.perf_counter() < end:
        began = time.perf_counter()
        connection.request("GET", STATUS)
        connection.getresponse().read()
        found.append(1000 * (time.perf_counter() - began))
        time.sleep(PAUSE_SECONDS)
    connection.close()
    return sorted(found)


def beside_replays(table: Table, server: LiveServer) -> None:
    job_id = long_log(server)
    for count in (0, 1, 4):
        with replays(server, job_id, count):
            time.sleep(1)
            found = asked(server)
        name = f"status beside {count or 'no'} replay{'s' if count > 1 else ''} of {LOGGED:,} events: p50 and p99"
        table.add(SECTION, name, f"{found[len(found) // 2]:.1f} and {found[len(found) * 99 // 100]:.1f} ms", aim="p99 under 20 ms")


def run(table: Table) -> None:
    with tempfile.TemporaryDirectory(prefix="bench-latency-") as folder, start_server(Path(folder)) as server:
        under_wrk(table, server)
        beside_replays(table, server)
