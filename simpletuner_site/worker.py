"""``simpletuner worker``: the django-q2 cluster that starts engines and follows them.

The cluster is a tree of forked processes in a session of its own, so that one signal reaches all of it. Under a server, the
worker's standard input is a pipe that the server holds open: when the server is gone, however it went, the pipe ends.
"""

from __future__ import annotations

import os
import signal
import threading
import time

from django.conf import settings

from simpletuner_site.quiet import freeze_garbage
from simpletuner_site.worker_state import write_worker_state

STDIN = 0
ORPHAN_GRACE_SECONDS = 2.0


def run_worker(*, under_server: bool) -> int:
    """Serve tasks until SIGTERM or SIGINT; a task that runs then is finished first."""
    from django_q.cluster import Cluster

    write_worker_state(settings.STATE_DIR, os.getpid())
    if under_server:
        threading.Thread(target=_leave_with_server, daemon=True).start()
    freeze_garbage()  # also keeps the pages that the forked processes share from being written to
    cluster = Cluster()  # takes SIGTERM and SIGINT, and stops the tree
    cluster.start()
    while cluster.sentinel.is_alive():
        cluster.sentinel.join(1.0)
    return 0 if cluster.has_stopped else 1


def _leave_with_server() -> None:
    """Wait for the end of the pipe, then stop; runs are in sessions of their own and stay alive."""
    # NOTE: not through sys.stdin, whose lock a forked child would inherit as held, and wait for when it closes its copy.
    while os.read(STDIN, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(ORPHAN_GRACE_SECONDS)
    if os.getpgrp() == os.getpid():
        os.killpg(os.getpgrp(), signal.SIGKILL)
