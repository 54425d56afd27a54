"""Runs a script in a process of its own, for work on patterns of users that may never end.

Python's ``re`` holds the GIL: a pattern with nested repeats stops every thread of a server, and even delays SIGTERM.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

MEMORY_BYTES = 1024**3
"""Limit that a script sets itself."""
HELPERS = threading.BoundedSemaphore(2)
"""Limits how many helper processes a server runs at the same time."""


def lines_of(script: Path, request: bytes, *, wall_seconds: float) -> list[bytes]:
    """Returns the complete lines that a script writes for a request before it ends or ``wall_seconds`` are over.

    The script is run by its path, and imports only the standard library. It limits its own time and memory, since it knows both. Raises
    OSError if it cannot be started.
    """
    with (
        HELPERS,
        subprocess.Popen(
            [sys.executable, "-I", "-S", str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
        ) as helper,
    ):
        try:
            output, _ = helper.communicate(request, timeout=wall_seconds)
        except subprocess.TimeoutExpired:
            os.killpg(helper.pid, signal.SIGKILL)
            output, _ = helper.communicate()
        finally:
            if helper.poll() is None:
                os.killpg(helper.pid, signal.SIGKILL)
    *lines, _ = output.split(b"\n")
    return lines
