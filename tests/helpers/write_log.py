"""Write into the log of a server's home from another process: ``SIMPLETUNER_HOME=… python write_log.py COMMAND …``.

``new STATUS`` makes a job and prints its id; ``events JOB COUNT SECONDS BYTES`` appends events; ``move JOB STATUS`` ends it.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
os.environ["DJANGO_SETTINGS_MODULE"] = "simpletuner_site.settings"

import django  # noqa: E402

django.setup()

from tests.helpers.jobs import make_job  # noqa: E402
from trainer_engine.contract.events import Notification  # noqa: E402
from training import log  # noqa: E402
from training.models import Job, Status  # noqa: E402


def main(command: str, *arguments: str) -> None:
    if command == "new":
        print(make_job(Path(os.environ["SIMPLETUNER_HOME"]), Status(arguments[0])).pk)
    elif command == "move":
        job = Job.objects.get(pk=arguments[0])
        assert log.move(job.pk, Status(arguments[1]), [log.status_draft(Status(arguments[1]))])
    elif command == "events":
        job_id, count, seconds, size = Job.objects.get(pk=arguments[0]).pk, int(arguments[1]), float(arguments[2]), int(arguments[3])
        for _ in range(count):
            log.append(job_id, [log.from_server(Notification(message="x" * size, details={"sent_at": time.time()}))])
            time.sleep(seconds)


if __name__ == "__main__":
    main(*sys.argv[1:])
