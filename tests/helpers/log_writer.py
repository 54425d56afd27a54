"""A process that writes into the log of a server's home, as a worker does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

WRITER = Path(__file__).with_name("write_log.py")


class LogWriter:
    """Carries out the commands of ``write_log.py``, one after the other. Django takes a second to start, so one process writes all."""

    def __init__(self, home: Path) -> None:
        environment = {**os.environ, "SIMPLETUNER_HOME": str(home)}
        command = [sys.executable, str(WRITER), "serve"]
        self.process = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def write(self, *arguments: object) -> str:
        """The answer of a command: the id of a new job, else empty."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps([str(one) for one in arguments]) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        assert answer.endswith("\n"), "the writer died"
        return answer.strip()

    def close(self) -> None:
        self.process.communicate(timeout=30)

    def __enter__(self) -> LogWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
