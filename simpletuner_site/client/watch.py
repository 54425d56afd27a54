"""``simpletuner watch`` and ``simpletuner events``: what a run reports, as it happens."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from typing import Any

from environments.moments import moment_text
from simpletuner_site.client.connection import Api, Refused, job_id
from simpletuner_site.client.output import console, print_line
from simpletuner_site.train.run_screen import RunScreen
from trainer_engine.contract.errors import ExitCode

POLL_SECONDS = 0.5
PAGE = 500
ENDED = ("completed", "stopped", "cancelled", "error")
CODES = {"completed": ExitCode.COMPLETED, "stopped": ExitCode.STOPPED}
STATUS, PROGRESS = "training.status", "training.progress"


def named_or_current(api: Api, text: str | None) -> str:
    """The id of a named run, else of the current or last one. Raises Refused if there is none."""
    found = job_id(api, text) or api.get("/api/training/status")["job_id"]
    if found is None:
        raise Refused("There is no run yet.")
    return str(found)


def read_events(api: Api, job: str, since: int, *, follow: bool) -> Iterator[dict[str, Any]]:
    """The events of a run from an index on; with ``follow`` until it has ended. Images are links."""
    has_ended = False
    while True:
        page = api.get("/api/training/events", job_id=job, since_index=since, limit=PAGE, media="url")
        yield from page["events"]
        since = page["next_index"]
        if page["events"] and (not follow or len(page["events"]) == PAGE):
            continue
        # The status is read before the last page, so that no event between the two is missed.
        if not follow or (has_ended and not page["events"]):
            return
        has_ended = api.get(f"/api/training/jobs/{job}")["status"] in ENDED
        if not has_ended:
            time.sleep(POLL_SECONDS)


def show_events(api: Api, arguments: argparse.Namespace) -> int:
    job = named_or_current(api, arguments.run_name)
    for event in read_events(api, job, arguments.since, follow=arguments.follow):
        if arguments.json:
            print(json.dumps(event, ensure_ascii=False), flush=True)
        elif arguments.all or event["type"] != PROGRESS:
            print(event_line(event), flush=True)
    return 0


def event_line(event: dict[str, Any]) -> str:
    """``12 2026-11-29 18:03:11 UTC training.checkpoint: checkpoint-640 saved``."""
    words = event.get("message") or event.get("title") or ""
    stage = event.get("stage")
    if stage:
        progress = stage["progress"]
        words = f"{stage['label']}: {stage['status']}, {progress['current']} of {progress['total']}"
    elif event["type"] == PROGRESS:
        data = event["data"]
        words = f"step {data.get('step')} of {data.get('total_steps')}, loss {data.get('loss')}"
    return f"{event['index']:>6} {moment_text(event['timestamp'])} {event['type']}: {' '.join(str(words).split())}".rstrip()


def watch_run(api: Api, arguments: argparse.Namespace) -> int:
    """Show a run until it has ended. Ctrl-C leaves it running. Returns 0 if it completed, 10 if it was stopped, else 1."""
    job = named_or_current(api, arguments.run_name)
    with RunScreen(console()) as screen:
        try:
            for event in read_events(api, job, 0, follow=True):
                screen.show(event)
        except KeyboardInterrupt:
            screen.say("The run goes on; `simpletuner stop` saves and ends it.")
            return 0
    found = api.get(f"/api/training/jobs/{job}")
    code = CODES.get(found["status"], ExitCode.FAILURE)
    info = found["job_info"]
    print_line(f"{found['status']}: {info['message']}", sign="[green]✓[/]" if code in CODES.values() else "[red]✗[/]")
    if info.get("hint"):
        print_line(str(info["hint"]), sign=" ")
    return code
