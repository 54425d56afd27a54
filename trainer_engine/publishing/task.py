"""A transfer task, and the process that runs it: start, progress, outcome and end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

from trainer_engine.config.publishing import HUB
from trainer_engine.runtime.environment import helper_environment

MODULE = "trainer_engine.publishing"
BROKE_OFF = "the transfer process ended without a result"


@dataclass(frozen=True)
class Task:
    """A transfer. It is passed through standard input, because every user of the machine can read command lines."""

    action: str
    """``send`` or ``fetch``."""
    target: Mapping[str, Any]
    """A PublishTarget with its credentials."""
    folder: str
    """The folder to send, or the output folder to fetch into."""
    remote: str
    """Folder at the provider; empty for the top level."""
    expected: Mapping[str, str] = field(default_factory=dict)
    """For ``fetch``: entries that the manifest must have."""
    identity: Mapping[str, Any] = field(default_factory=dict)
    """For ``fetch``: what the checkpoint's training state must have in common with the run."""

    def line(self) -> bytes:
        return json.dumps(asdict(self)).encode() + b"\n"

    @classmethod
    def parse(cls, line: str | bytes) -> Task:
        return cls(**json.loads(line))


@dataclass(frozen=True)
class TaskOutcome:
    """Result of a task."""

    address: str = ""
    """Address of the uploaded folder, or name of the fetched checkpoint; empty if the task failed."""
    trouble: str = ""
    hint: str = ""
    permanent: bool = False
    """Whether a retry is useless until something is changed."""

    @property
    def arrived(self) -> bool:
        return not self.trouble


class Mover:
    """Runs a task in a process of its own session, with low priority.

    The process ends when this one ends for any reason, because it reads from a pipe that only this process holds.
    """

    def __init__(self, task: Task) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", MODULE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=helper_environment(with_network=True, with_hub=task.target.get("provider") == HUB),
            start_new_session=True,
        )
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(task.line())
            self.process.stdin.flush()
        except OSError:
            pass  # it ended at once; ``wait`` reports it

    def wait(self, moved: Callable[[int, int], None]) -> TaskOutcome:
        """Block until the process ends. ``moved`` receives (bytes transferred, bytes in total)."""
        outcome = TaskOutcome(trouble=BROKE_OFF)
        assert self.process.stdout is not None and self.process.stdin is not None
        for line in self.process.stdout:
            message = _parse(line)
            if "moved" in message:
                moved(int(message["moved"]), int(message.get("total", 0)))
            elif "outcome" in message:
                outcome = TaskOutcome(**message["outcome"])
        self.process.wait()
        with suppress(OSError):  # a task that was not delivered is still in the buffer
            self.process.stdin.close()
        self.process.stdout.close()
        return outcome

    def end(self) -> None:
        """Kill the process; ``wait`` then returns."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except OSError:
            self.process.kill()


def _parse(line: bytes) -> dict[str, Any]:
    """A message of the process; empty for other lines, which libraries may print."""
    try:
        message = json.loads(line)
    except ValueError:
        return {}
    return message if isinstance(message, dict) else {}
