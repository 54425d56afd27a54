"""Keeps one worker process running with the server: starts it, restarts it when it dies, and ends it with the server."""

from __future__ import annotations

import faulthandler
import logging
import os
import signal
import subprocess
import sys
import threading

logger = logging.getLogger(__name__)

STOP_GRACE_SECONDS = 4.0
"""How long a worker may finish its tasks. Tasks that are cut off are delivered again, which does no harm."""
FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 30.0
HEALTHY_AFTER_SECONDS = 60.0


class WorkerKeeper:
    """Runs one thread that waits for one process."""

    def __init__(self, command: list[str] | None = None) -> None:
        self._command = command or [sys.executable, "-m", "simpletuner_site.cli", "worker", "--under-server"]
        self._should_stop = threading.Event()
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._keep, name="worker-keeper", daemon=True)

    @property
    def pid(self) -> int | None:
        """Process id of the running worker, or None."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the worker and all its processes; returns when none is left."""
        for number in (signal.SIGTERM, signal.SIGINT):
            faulthandler.unregister(number)
        with self._lock:
            self._should_stop.set()
            process = self._process
        if process is not None:
            self._end(process)
        if self._thread.is_alive():
            self._thread.join()

    def _keep(self) -> None:
        pause = FIRST_PAUSE_SECONDS
        while True:
            with self._lock:
                if self._should_stop.is_set():
                    return
                process = self._process = self._spawn()
            try:
                process.wait(HEALTHY_AFTER_SECONDS)
            except subprocess.TimeoutExpired:
                pause = FIRST_PAUSE_SECONDS
                process.wait()
            _kill_session(process.pid)  # the processes that the dead worker forked
            if self._should_stop.is_set():
                return
            logger.warning("the worker ended with code %s and is started again in %g s", process.returncode, pause)
            self._should_stop.wait(pause)
            pause = min(pause * 2, LONGEST_PAUSE_SECONDS)

    def _spawn(self) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(self._command, stdin=subprocess.PIPE, start_new_session=True)
        assert process.stdin is not None
        for number in (signal.SIGTERM, signal.SIGINT):
            # The signal handler in C writes to the pipe before any Python code runs, so that the worker is notified even if a
            # thread holds the interpreter for ever, such as an endless regular expression. A shell that runs the server in the
            # background of a script lets it ignore Ctrl-C: then the signal asks for nothing.
            if signal.getsignal(number) is not signal.SIG_IGN:
                faulthandler.register(number, file=process.stdin, all_threads=True, chain=True)
        return process

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        process.terminate()
        try:
            process.wait(STOP_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            logger.info("the worker is still busy and is killed; runs continue and the next worker follows them")
        _kill_session(process.pid)
        process.wait()


def _kill_session(leader: int) -> None:
    try:
        os.killpg(leader, signal.SIGKILL)
    except ProcessLookupError:
        pass
