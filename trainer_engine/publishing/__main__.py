"""Transfers the files of one task: ``python -m trainer_engine.publishing``.

The task is a line of JSON on standard input; progress and outcome are lines of JSON on standard output.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path

from trainer_engine.config.publishing import PublishTarget
from trainer_engine.publishing.base import Provider, ProviderError
from trainer_engine.publishing.connect import ConnectionRule, Guard
from trainer_engine.publishing.fetch import fetch_checkpoint
from trainer_engine.publishing.providers import open_provider
from trainer_engine.publishing.task import Task, TaskOutcome
from trainer_engine.runtime.environment import private_networks_are_open

NICENESS = 10
REPORT_EVERY_SECONDS = 0.25


class ByteCounter:
    """Counts the bytes that were transferred, and reports them a few times a second."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.done = 0
        self._reported = 0.0
        self._lock = threading.Lock()  # libraries send parts in threads

    def moved(self, count: int) -> None:
        with self._lock:
            self.done += count
            if time.monotonic() - self._reported >= REPORT_EVERY_SECONDS:
                self._reported = time.monotonic()
                report({"moved": self.done, "total": self.total})


def report(document: dict[str, object]) -> None:
    """Write one line of JSON."""
    sys.stdout.write(json.dumps(document) + "\n")
    sys.stdout.flush()


def end_with_the_run() -> None:
    """Exit when the pipe is closed; only the run holds its other end."""
    sys.stdin.buffer.read()
    os._exit(1)


def perform(task: Task) -> TaskOutcome:
    """Run a task. An error of the provider or the disk becomes the outcome."""
    try:
        target = PublishTarget(**task.target)
        rule = ConnectionRule.of(target, private=private_networks_are_open())
        provider: Provider = open_provider(target, rule)
        Guard(rule).stand()  # only now: boto3 has just read the role of the machine from a closed address
        if task.action == "fetch":
            name = fetch_checkpoint(
                provider, task.remote, Path(task.folder), task.expected, lambda total: ByteCounter(total).moved, task.identity
            )
            return TaskOutcome(name)
        folder = Path(task.folder)
        total = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        return TaskOutcome(provider.send(folder, task.remote, ByteCounter(total).moved))
    except ProviderError as error:
        return TaskOutcome(trouble=error.message, hint=error.hint, permanent=error.permanent)
    except OSError as error:
        return TaskOutcome(trouble=f"A file could not be read or written: {error}")


def main() -> int:
    os.nice(NICENESS)
    task = Task.parse(sys.stdin.buffer.readline())
    threading.Thread(target=end_with_the_run, daemon=True).start()
    outcome = perform(task)
    report({"outcome": vars(outcome)})
    sys.stdout.flush()
    os._exit(0 if outcome.arrived else 1)  # the thread above sits in a read, and libraries keep threads of their own


if __name__ == "__main__":
    main()
