"""Runs of a tiny model that a live server starts, and the means to watch them and to break them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

from tests.helpers.live_server import LiveServer
from tests.helpers.tiny_run import tiny_datasets, tiny_options
from trainer_engine.contract.checkpoint_files import verify
from trainer_engine.contract.run import RunFolder
from training.engine import process as engine_process

ENDED = ("completed", "stopped", "cancelled", "error")
JSON = {"Accept": "application/json"}
ENDLESS = 1_000_000
"""Optimizer steps that nobody waits for."""
HANGS_AFTER_SECONDS = 900
"""A wait of this length has found a hang. It is far above what a loaded machine needs, because a test never asserts a duration."""


def wait_until(is_so: Callable[[], Any], what: str, *, seconds: float = HANGS_AFTER_SECONDS) -> Any:
    """The first true answer."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        answer = is_so()
        if answer:
            return answer
        time.sleep(0.05)
    raise AssertionError(f"not within {seconds:g} s: {what}")


@dataclass
class ServedRuns:
    """What a person with HTTP does, and what a fault does to the processes behind it. ``place`` holds data, caches and results."""

    server: LiveServer
    place: Path

    def output(self, name: str) -> Path:
        return self.place / name

    def form(self, output: str, **options: Any) -> dict[str, Any]:
        """A complete form; the datasets are made at the first call."""
        datasets = self.place / "multidatabackend.json"
        if not datasets.exists():
            self.place.mkdir(parents=True, exist_ok=True)
            datasets.write_text(json.dumps(tiny_datasets(self.place)), encoding="utf-8")
        return tiny_options(self.place, output_dir=str(self.output(output)), **options)

    def start(self, output: str, *, key: str = "", **options: Any) -> str:
        """The job's id."""
        headers = JSON | ({"Idempotency-Key": key} if key else {})
        answer = self.server.post("/api/training/start", data=self.form(output, **options), headers=headers)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["job_id"])

    def job(self, job_id: str) -> dict[str, Any]:
        """``/jobs/<id>``: the shape of status."""
        answer: dict[str, Any] = self.server.get(f"/api/training/jobs/{job_id}", headers=JSON).raise_for_status().json()
        return answer

    def status(self, job_id: str) -> str:
        return str(self.job(job_id)["status"])

    def wait_for_status(self, job_id: str, *statuses: str, seconds: float = HANGS_AFTER_SECONDS) -> dict[str, Any]:
        """The job once it is in one of these; an end that is none of them fails at once."""

        def arrived() -> dict[str, Any] | None:
            job = self.job(job_id)
            assert job["status"] in statuses or job["status"] not in ENDED, (job["job_info"], self.log(job_id))
            return job if job["status"] in statuses else None

        found: dict[str, Any] = wait_until(arrived, f"job {job_id} {' or '.join(statuses)}", seconds=seconds)
        return found

    def wait_for_end(self, job_id: str, seconds: float = HANGS_AFTER_SECONDS) -> dict[str, Any]:
        return self.wait_for_status(job_id, *ENDED, seconds=seconds)

    def events(self, job_id: str, since: int = 0) -> list[dict[str, Any]]:
        """All of them from an index on, page by page, as a client polls."""
        found: list[dict[str, Any]] = []
        while True:
            page = self.server.get(f"/api/training/events?job_id={job_id}&since_index={since + len(found)}").raise_for_status().json()
            if not page["events"]:
                return found
            found += page["events"]
            assert page["next_index"] == found[-1]["index"] + 1

    def steps(self, job_id: str) -> list[int]:
        """The optimizer steps that the log tells of."""
        return [event["data"]["step"] for event in self.events(job_id) if event["type"] == "training.progress"]

    def announced(self, job_id: str) -> list[str]:
        """Names of the checkpoints that the log tells of."""
        return [Path(event["checkpoint"]["path"]).name for event in self.events(job_id) if event["type"] == "training.checkpoint"]

    def step(self, job_id: str) -> int:
        """The optimizer step that the run is at."""
        return int((self.job(job_id)["progress"] or {"step": 0})["step"])

    def wait_for_step(self, job_id: str, step: int, seconds: float = HANGS_AFTER_SECONDS) -> int:
        """The step that the run is at, once it is that far. A run that ended before fails at once."""

        def arrived() -> int:
            job = self.job(job_id)
            now = int((job["progress"] or {"step": 0})["step"])
            assert now >= step or job["status"] not in ENDED, (job["job_info"], self.log(job_id))
            return now if now >= step else 0

        return int(wait_until(arrived, f"step {step} of {job_id}", seconds=seconds))

    def wait_for_event(self, job_id: str, type: str, count: int = 1, seconds: float = HANGS_AFTER_SECONDS) -> list[dict[str, Any]]:
        """The events of a type once there are ``count`` of them."""
        heard: list[dict[str, Any]] = []

        def enough() -> list[dict[str, Any]] | None:
            heard.extend(self.events(job_id, len(heard)))
            found = [event for event in heard if event["type"] == type]
            return found if len(found) >= count else None

        return list(wait_until(enough, f"{count} x {type} of {job_id}", seconds=seconds))

    def wait_for_checkpoint(self, job_id: str, count: int = 1) -> str:
        """The name of the newest once ``count`` were announced."""
        return Path(self.wait_for_event(job_id, "training.checkpoint", count)[-1]["checkpoint"]["path"]).name

    def folder(self, job_id: str) -> RunFolder:
        return RunFolder(self.server.home.resolve() / "state/runs" / job_id)

    def log(self, job_id: str) -> str:
        path = self.folder(job_id).log
        return path.read_text(errors="replace")[-4000:] if path.exists() else ""

    def engine(self, job_id: str) -> list[psutil.Process]:
        """Launcher and ranks."""
        return list(engine_process.processes_of(self.folder(job_id)))

    def wait_for_engine(self, job_id: str) -> list[psutil.Process]:
        found: list[psutil.Process] = wait_until(lambda: self.engine(job_id), f"an engine of {job_id}")
        return found

    def kill_engine(self, job_id: str) -> None:
        """SIGKILL to every process of the run."""
        for process in self.engine(job_id):
            try:
                process.kill()
            except psutil.NoSuchProcess:
                pass

    def stop(self, job_id: str = "") -> dict[str, Any]:
        answer: dict[str, Any] = self.server.post("/api/training/stop", json={"job_id": job_id} if job_id else {}).raise_for_status().json()
        return answer

    def cancel(self, job_id: str) -> dict[str, Any]:
        answer = self.server.post("/api/training/cancel", data={"job_id": job_id}, headers=JSON)
        cancelled: dict[str, Any] = answer.raise_for_status().json()
        return cancelled

    def weights(self, output: str, step: int) -> bytes:
        """Of a checkpoint, as they lie on disk."""
        return (self.output(output) / f"checkpoint-{step}/transformer/diffusion_pytorch_model.safetensors").read_bytes()

    # ---- what always holds ----
    def check_log(self, job_id: str) -> list[dict[str, Any]]:
        """Indexes 0..n without a gap, every step once and in order, no status twice; the events."""
        events = self.events(job_id)
        assert [event["index"] for event in events] == list(range(len(events)))
        assert {event["job_id"] for event in events} == {job_id}
        steps = [event["data"]["step"] for event in events if event["type"] == "training.progress"]
        assert steps == list(range(steps[0], steps[0] + len(steps))) if steps else True
        statuses = [event["data"]["status"] for event in events if event["type"] == "training.status"]
        assert len(statuses) == len(set(statuses)), statuses
        if self.status(job_id) in ENDED:
            assert statuses[-1] == self.status(job_id)
            assert events[-1]["type"] == "training.status"
        return events

    def check_announced(self, job_id: str, output: str) -> str:
        """The newest announced checkpoint verifies, byte by byte; its name, empty where none was announced."""
        names = self.announced(job_id)
        if names:
            assert verify(self.output(output) / names[-1]) == []
        return names[-1] if names else ""

    def check_nothing_left(self, job_id: str) -> None:
        """No process of the run is alive."""
        wait_until(lambda: not self.engine(job_id), f"no process of {job_id}")

    def end_all(self) -> None:
        """Cancel whatever has not ended: no test leaves a run behind."""
        try:
            jobs = self.server.get("/api/training/jobs", headers=JSON).json()["jobs"]
        except httpx.TransportError:
            jobs = []
        for job in sorted(jobs, key=lambda job: -job["number"]):
            if job["status"] not in ENDED:
                self.cancel(job["job_id"])
        for folder in (self.server.home / "state/runs").glob("*"):
            self.kill_engine(folder.name)
