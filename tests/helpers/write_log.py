"""Write into the log of a server's home from another process: ``SIMPLETUNER_HOME=… python write_log.py COMMAND …``.

``new STATUS`` makes a job and prints its id; ``events JOB COUNT SECONDS BYTES`` appends events; ``fill JOB COUNT`` appends steps at once;
``move JOB STATUS`` ends it. ``serve`` takes such commands from standard input, one JSON list a line, and answers each with a line.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
os.environ["DJANGO_SETTINGS_MODULE"] = "simpletuner_site.settings"

import django  # noqa: E402

django.setup()

from tests.helpers.jobs import make_job  # noqa: E402
from trainer_engine.contract.events import Notification, ProgressEvent  # noqa: E402
from training.jobs import log  # noqa: E402
from training.models import Job, Status  # noqa: E402

SHOWN = {
    "epoch": 1,
    "loss": 0.5,
    "learning_rate": 1e-4,
    "grad_norm": 1.0,
    "samples_per_second": 4.0,
    "seconds_per_step": 0.25,
    "eta_seconds": 9,
}
AT_ONCE = 2_000
"""Events of one transaction."""


def main(command: str, *arguments: str) -> None:
    if command == "serve":
        for line in sys.stdin:
            print(do(*json.loads(line)), flush=True)
    else:
        print(do(command, *arguments))


def do(command: str, *arguments: str) -> str:
    """Carry out one command. The answer is the id of a new job, else empty."""
    if command == "new":
        return str(make_job(Path(os.environ["SIMPLETUNER_HOME"]), Status(arguments[0])).pk)
    elif command == "move":
        job = Job.objects.get(pk=arguments[0])
        assert log.move(job.pk, Status(arguments[1]), [log.status_event(Status(arguments[1]))])
    elif command == "fill":
        job_id, count = Job.objects.get(pk=arguments[0]).pk, int(arguments[1])
        for first in range(0, count, AT_ONCE):
            steps = range(first, min(count, first + AT_ONCE))
            events = [ProgressEvent(step=step + 1, total_steps=count, **SHOWN) for step in steps]
            Job.objects.filter(pk=job_id).update(progress=events[-1].data())
            log.append(job_id, [log.from_server(event) for event in events])
    elif command == "events":
        job_id, count, seconds, size = Job.objects.get(pk=arguments[0]).pk, int(arguments[1]), float(arguments[2]), int(arguments[3])
        for _ in range(count):
            log.append(job_id, [log.from_server(Notification(message="x" * size, details={"sent_at": time.time()}))])
            time.sleep(seconds)
    return ""


if __name__ == "__main__":
    main(*sys.argv[1:])
