"""A run as its user sees it: from the request to the first step, and from the engine's write to a subscriber."""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import websockets

from tests.bench.table import Table, milliseconds, percentile
from tests.helpers.live_server import LiveServer, start_server
from tests.helpers.tiny_run import tiny_datasets, tiny_options
from trainer_engine.contract.events import ProgressEvent
from trainer_engine.contract.run import RunFolder
from trainer_engine.runtime.events import Journal

STEPS = 400
APPENDS = 5_000


def start(server: LiveServer, place: Path, **options: Any) -> str:
    """Start a run of the micro model; its job id."""
    values = {**tiny_options(place), **options, "data_backend_config": str(place / "multidatabackend.json")}
    (place / "multidatabackend.json").write_text(json.dumps(tiny_datasets(place)))
    fields = {f"--{name}": str(value) for name, value in values.items()}
    answer = server.post("/api/training/start", data=fields, headers={"Accept": "application/json"})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["job_id"])


async def _subscribe(server: LiveServer, job_id: str) -> list[tuple[dict[str, Any], datetime]]:
    """Every event of a job and when it arrived, until the job ends."""
    heard = []
    url = f"ws://localhost:{server.port}/api/training/events/stream?job_id={job_id}"
    async with websockets.connect(url, max_size=None) as socket:
        while True:
            event = json.loads(await asyncio.wait_for(socket.recv(), 120))["event"]
            heard.append((event, datetime.now(timezone.utc)))
            if event["type"] == "training.status" and event["data"]["status"] in ("completed", "error", "stopped"):
                return heard


def seconds_between(first: str, second: str) -> float:
    return (datetime.fromisoformat(second) - datetime.fromisoformat(first)).total_seconds()


def report_start(table: Table, asked: datetime, events: list[dict[str, Any]]) -> None:
    """Request to first step, and which part of it each stage took."""
    first = next(event for event in events if event["type"] == "training.progress")
    total = seconds_between(asked.isoformat(), first["timestamp"])
    table.add("start", "request to first optimizer step, small model", f"{total:.1f} s", aim="under 12 s", beside="SimpleTuner 157 s")
    began: dict[str, str] = {}
    for event in events[: events.index(first)]:
        stage = event.get("stage")
        if stage and stage["status"] == "running":
            began.setdefault(stage["key"], event["timestamp"])
        elif stage:
            table.add("start", f"of it {stage['key']}", f"{seconds_between(began[stage['key']], event['timestamp']):.2f} s")
    preparing = seconds_between(asked.isoformat(), min(began.values()))
    table.add("start", "of it queue and process start", f"{preparing:.2f} s")


def appending(table: Table) -> None:
    with tempfile.TemporaryDirectory(prefix="bench-journal-") as folder:
        journal = Journal(RunFolder(Path(folder)).create().journal)
        event = ProgressEvent(
            step=1,
            total_steps=2,
            epoch=1,
            loss=0.5,
            learning_rate=1e-4,
            grad_norm=1.0,
            samples_per_second=1,
            seconds_per_step=1,
            eta_seconds=1,
        )
        lags = []
        for _ in range(APPENDS):
            began = time.perf_counter()
            journal.emit(event)
            lags.append(time.perf_counter() - began)
    text = f"{1e6 * percentile(lags, 50):.0f} / {1e6 * percentile(lags, 99):.0f} µs"
    table.add("events", "append to the journal, p50 / p99", text)


def run(table: Table) -> None:
    appending(table)
    with tempfile.TemporaryDirectory(prefix="bench-journey-") as folder:
        place = Path(folder)
        with start_server(place / "home") as server:
            asked = datetime.now(timezone.utc)
            job_id = start(server, place, max_train_steps=STEPS)
            heard = asyncio.run(_subscribe(server, job_id))
    report_start(table, asked, [event for event, _ in heard])
    lags = [
        (at - datetime.fromisoformat(event["timestamp"])).total_seconds() for event, at in heard if event["type"] == "training.progress"
    ]
    text = f"{milliseconds(percentile(lags, 50))} / {milliseconds(percentile(lags, 99))}"
    table.add("events", f"engine's write to a WebSocket client, p50 / p99 over {len(lags)} steps", text, aim="p99 under 150 ms")
