"""The tutorial's seven steps, each with one or two requests."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx

from simpletuner_site.demo.configuration import PROMPTS, datasets, hyperparameters
from simpletuner_site.demo.folders import ENVIRONMENT, PROMPTS_FILE, DemoFolders

AS_JSON = {"Accept": "application/json"}


class StepFailed(Exception):
    """The server refused a request; the message is its reason."""


def answered(response: httpx.Response) -> Any:
    """The JSON of a successful answer. Raises StepFailed with the server's reason."""
    if response.is_success:
        return response.json()
    try:
        body = response.json()
    except ValueError:
        raise StepFailed(f"{response.request.method} {response.request.url}: {response.status_code} {response.text[:500]}") from None
    lines = [f"  {problem['option']}: {problem['message']} {problem['hint']}" for problem in body.get("problems", [])]
    raise StepFailed("\n".join([f"{response.request.method} {response.request.url}: {body.get('detail')}", *lines]))


def create_environment(client: httpx.Client) -> dict[str, Any]:
    body = {
        "name": ENVIRONMENT,
        "model_family": "pixart_sigma",
        "model_flavour": "900M-1024-v0.6",
        "model_type": "full",
        "description": "A small PixArt Sigma, trained by the demo",
    }
    created: dict[str, Any] = answered(client.post("/api/configs/environments", json=body))
    return created


def describe_datasets(folders: DemoFolders) -> None:
    """Write the datasets file and the prompt library by hand, as users do."""
    _write(folders, "multidatabackend.json", datasets(folders))
    _write(folders, PROMPTS_FILE, PROMPTS)


def _write(folders: DemoFolders, name: str, document: object) -> None:
    file = folders.root / "config" / ENVIRONMENT / name
    file.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def set_hyperparameters(client: httpx.Client, folders: DemoFolders) -> dict[str, Any]:
    stored = answered(client.get(f"/api/configs/{ENVIRONMENT}"))["config"]
    body = {
        "name": ENVIRONMENT,
        "description": "A small PixArt Sigma, trained by the demo",
        "tags": ["pixart", "demo"],
        "config": {**stored, **hyperparameters(folders)},
    }
    updated: dict[str, Any] = answered(client.put(f"/api/configs/{ENVIRONMENT}", json=body))
    return updated


def activate(client: httpx.Client) -> None:
    answered(client.post(f"/api/configs/{ENVIRONMENT}/activate"))


def submit(client: httpx.Client, what: str) -> dict[str, Any]:
    """``validate`` or ``start``, with the form that the tutorial sends."""
    form = {"__active_tab__": "model", "--num_train_epochs": "0"}
    answer: dict[str, Any] = answered(client.post(f"/api/training/{what}", data=form, headers=AS_JSON))
    return answer


def stream_events(client: httpx.Client, job_id: str) -> Iterator[dict[str, Any]]:
    """Every event of a job as it happens, from the first one; ends with the job."""
    parameters = {"job_id": job_id, "since_index": "0"}
    with client.stream("GET", "/api/training/events/stream", params=parameters, timeout=None) as response:
        for line in response.iter_lines():
            if not line.startswith("data:"):
                continue
            event: dict[str, Any] = json.loads(line.removeprefix("data:"))
            yield event
            if event["type"] == "training.status" and event["data"].get("status") in ("completed", "stopped", "cancelled", "error"):
                return


def run_number(client: httpx.Client, job_id: str) -> int:
    """The number of a run in the addresses of its page."""
    rows = answered(client.get("/api/training/jobs"))["jobs"]
    return next(int(row["number"]) for row in rows if row["job_id"] == job_id)


def finished_job(client: httpx.Client) -> dict[str, Any]:
    status: dict[str, Any] = answered(client.get("/api/training/status"))
    return status


def picture(client: httpx.Client, job_id: str, name: str) -> bytes:
    """``grid.png`` or ``curves.svg`` of a job."""
    response = client.get(f"/api/training/jobs/{job_id}/{name}")
    if not response.is_success:
        answered(response)
    return response.content


def list_checkpoints(client: httpx.Client) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = answered(client.post("/api/training/checkpoints"))["checkpoints"]
    return found


def verify_checkpoint(client: httpx.Client, name: str) -> bool:
    return bool(answered(client.get(f"/api/training/checkpoints/validate/{name}"))["valid"])
