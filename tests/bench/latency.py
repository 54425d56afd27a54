"""How late the slowest hundredth of the answers comes, under ``wrk``: a steady load by another program than ours."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from tests.bench.table import Table
from tests.helpers.live_server import start_server

SECTION = "latency"
SECONDS = 8
STATUS = "/api/training/status"
AIMS = {1: "p99 under 5 ms"}
LATENCY = re.compile(r"^\s*(50|99)%\s+([\d.]+)(us|ms|s)\s*$", re.MULTILINE)
MILLISECONDS = {"us": 1e-3, "ms": 1.0, "s": 1e3}


def latencies(report: str) -> dict[int, float]:
    """Percentile -> milliseconds, of what wrk prints."""
    return {int(percent): float(number) * MILLISECONDS[unit] for percent, number, unit in LATENCY.findall(report)}


def run(table: Table) -> None:
    """One row a number of connections; one row that says so where there is no wrk."""
    wrk = shutil.which("wrk")
    if wrk is None:
        table.add(SECTION, "needs wrk", "not measured here")
        return
    with tempfile.TemporaryDirectory(prefix="bench-latency-") as folder, start_server(Path(folder)) as server:
        for connections in (1, 16):
            command = [wrk, "-t1", f"-c{connections}", f"-d{SECONDS}s", "--latency", f"{server.url}{STATUS}"]
            found = latencies(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
            name = f"status under wrk, {connections} connection{'s' if connections > 1 else ''}: p50 and p99"
            table.add(SECTION, name, f"{found[50]:.2f} and {found[99]:.2f} ms", aim=AIMS.get(connections, ""))
