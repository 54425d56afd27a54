"""``simpletuner worker``: the django-q2 cluster that starts engines and follows them.

The cluster is a tree of forked processes in its own session, so that one signal reaches all of them. Under a server, the
worker's standard input is a pipe that the server holds open: the pipe closes when the server is gone, for whatever reason.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import threading
import time

from django.conf import settings

from simpletuner_site.server.boot import freeze_garbage
from simpletuner_site.server.state import write_worker_state

logger = logging.getLogger(__name__)

STDIN = 0
TRACEBACK_BYTES = 64 * 1024
SERVER_GRACE_SECONDS = 12.0
"""Longer than an orderly shutdown takes: streams are closed, views get two seconds, the worker four."""
ORPHAN_GRACE_SECONDS = 2.0


def run_worker(*, under_server: bool) -> int:
    """Run tasks until SIGTERM or SIGINT; the current tasks are finished first."""
    from django_q.cluster import Cluster

    write_worker_state(settings.STATE_DIR, os.getpid())
    if under_server:
        threading.Thread(target=_leave_with_server, daemon=True).start()
    freeze_garbage()  # also keeps memory pages shared with the forked processes
    cluster = Cluster()  # takes SIGTERM and SIGINT, and stops the tree
    cluster.start()
    while cluster.sentinel.is_alive():
        cluster.sentinel.join(1.0)
    return 0 if cluster.has_stopped else 1


def _leave_with_server() -> None:
    """Wait until the pipe closes, then stop. Runs are in their own sessions and stay alive.

    The server writes to the pipe as soon as a signal asks it to end, even if its Python code is blocked. If it is still alive after
    the grace period, it is killed from here.
    """
    # NOTE: not sys.stdin: a forked child would inherit its lock as held, and block when it closes its copy.
    server = os.getppid()
    traceback = os.read(STDIN, TRACEBACK_BYTES)
    if traceback:
        traceback += _read_until(time.monotonic() + SERVER_GRACE_SECONDS)
        if os.getppid() == server:
            text = traceback.decode(errors="replace")
            logger.error("the server did not end within %g s after it was asked to, and is killed. %s", SERVER_GRACE_SECONDS, text)
            os.kill(server, signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(ORPHAN_GRACE_SECONDS)
    if os.getpgrp() == os.getpid():
        os.killpg(os.getpgrp(), signal.SIGKILL)


def _read_until(deadline: float) -> bytes:
    """Read from the pipe until it closes or the time is up."""
    read = b""
    while select.select([STDIN], [], [], max(0.0, deadline - time.monotonic()))[0]:
        part = os.read(STDIN, TRACEBACK_BYTES)
        if not part:
            break
        read += part
    return read
