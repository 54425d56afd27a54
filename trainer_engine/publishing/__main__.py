"""Moves the files of one task: ``python -m trainer_engine.publishing``, the task on its input, what becomes of it on its output."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path

from trainer_engine.config.publishing import PublishTarget
from trainer_engine.publishing.base import Store, StoreError
from trainer_engine.publishing.connect import ConnectionRule, Guard
from trainer_engine.publishing.fetch import fetch_checkpoint
from trainer_engine.publishing.providers import open_store
from trainer_engine.publishing.task import Outcome, Task
from trainer_engine.runtime.environment import private_networks_are_open

NICENESS = 10
TOLD_EVERY_SECONDS = 0.25


class Progress:
    """Says how many bytes have gone over the line, a few times a second."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.done = 0
        self._told = 0.0
        self._lock = threading.Lock()  # libraries send parts in threads

    def moved(self, count: int) -> None:
        with self._lock:
            self.done += count
            if time.monotonic() - self._told >= TOLD_EVERY_SECONDS:
                self._told = time.monotonic()
                say({"moved": self.done, "total": self.total})


def say(document: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(document) + "\n")
    sys.stdout.flush()


def end_with_the_run() -> None:
    """The other end of the pipe is held by the run alone: what is read from it now is its end."""
    sys.stdin.buffer.read()
    os._exit(1)


def perform(task: Task) -> Outcome:
    """Never raises for what a store does."""
    try:
        target = PublishTarget(**task.target)
        rule = ConnectionRule.of(target, private=private_networks_are_open())
        store: Store = open_store(target, rule)
        Guard(rule).stand()  # not before: boto3 has just asked for the role of the machine, where nothing else is asked
        if task.action == "fetch":
            name = fetch_checkpoint(
                store, task.remote, Path(task.folder), task.expected, lambda total: Progress(total).moved, task.identity
            )
            return Outcome(name)
        folder = Path(task.folder)
        total = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        return Outcome(store.send(folder, task.remote, Progress(total).moved))
    except StoreError as error:
        return Outcome(trouble=error.message, hint=error.hint, hopeless=error.hopeless)
    except OSError as error:
        return Outcome(trouble=f"A file could not be read or written: {error}")


def main() -> int:
    os.nice(NICENESS)
    task = Task.parse(sys.stdin.buffer.readline())
    threading.Thread(target=end_with_the_run, daemon=True).start()
    outcome = perform(task)
    say({"outcome": vars(outcome)})
    sys.stdout.flush()
    os._exit(0 if outcome.arrived else 1)  # the thread above sits in a read, and libraries keep threads of their own


if __name__ == "__main__":
    main()
