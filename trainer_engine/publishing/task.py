"""What a process beside the run is asked to do, and how it is started, heard and ended."""

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
BROKE_OFF = "the process that moved the files ended without a word"


@dataclass(frozen=True)
class Task:
    """Passed through the standard input: a command line is read by everybody on the machine."""

    action: str
    """``send`` or ``fetch``."""
    target: Mapping[str, Any]
    """A PublishTarget with its credentials."""
    folder: str
    """What is sent, or the output folder that is fetched into."""
    remote: str
    """Folder at the store; empty for its top."""
    expected: Mapping[str, str] = field(default_factory=dict)
    """Of a fetch: what the manifest must say."""
    identity: Mapping[str, Any] = field(default_factory=dict)
    """Of a fetch: what the checkpoint's training state must agree on with the run."""

    def line(self) -> bytes:
        return json.dumps(asdict(self)).encode() + b"\n"

    @classmethod
    def parse(cls, line: str | bytes) -> Task:
        return cls(**json.loads(line))


@dataclass(frozen=True)
class Outcome:
    """What became of a task."""

    address: str = ""
    """Of a send that arrived: where; of a fetch: the checkpoint's name. Empty where it did not."""
    trouble: str = ""
    hint: str = ""
    hopeless: bool = False
    """Whether trying again is of no use before something is changed."""

    @property
    def arrived(self) -> bool:
        return not self.trouble


class Mover:
    """One task in a process of its own, in a session of its own, with low priority.

    It ends when this process ends, however that may be: it reads from a pipe that nobody else holds.
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
            pass  # it ended at once; ``wait`` says so

    def wait(self, moved: Callable[[int, int], None]) -> Outcome:
        """Blocks until it ends; ``moved`` hears (bytes done, of how many)."""
        outcome = Outcome(trouble=BROKE_OFF)
        assert self.process.stdout is not None and self.process.stdin is not None
        for line in self.process.stdout:
            said = _parse(line)
            if "moved" in said:
                moved(int(said["moved"]), int(said.get("total", 0)))
            elif "outcome" in said:
                outcome = Outcome(**said["outcome"])
        self.process.wait()
        with suppress(OSError):  # a task that could not be handed over is still in the buffer
            self.process.stdin.close()
        self.process.stdout.close()
        return outcome

    def end(self) -> None:
        """At once; ``wait`` returns then."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except OSError:
            self.process.kill()


def _parse(line: bytes) -> dict[str, Any]:
    """What the process says in JSON; libraries may print other things."""
    try:
        said = json.loads(line)
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}
