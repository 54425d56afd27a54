"""Settings of the interpreter for a process that has to answer at any moment."""

from __future__ import annotations

import gc
import sys

SWITCH_SECONDS = 0.001
"""How long a thread may compute before another gets its turn; Python's own 5 ms add up over the hops of one request."""


def share_interpreter() -> None:
    """Let threads take turns more often."""
    sys.setswitchinterval(SWITCH_SECONDS)


def freeze_garbage() -> None:
    """Take what lives as long as the process out of every later garbage collection.

    Full collections walk all objects with the interpreter held: a tenth of a second for the modules and the address table of the server.
    """
    gc.collect()
    gc.freeze()
