"""How many connections fit below the process's limit of open files."""

from __future__ import annotations

import logging
import resource

logger = logging.getLogger(__name__)

WANTED_DESCRIPTORS = 4096
KEPT_FREE = 192
"""For databases (three each thread), logs, pictures, the worker's pipe, and connections that are just being refused."""
MOST_CONNECTIONS = 2000
FEWEST_CONNECTIONS = 16


def raise_descriptor_limit() -> int:
    """Raise the soft limit towards the hard one where it is low; the limit as it is then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = WANTED_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(WANTED_DESCRIPTORS, hard)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return WANTED_DESCRIPTORS if soft == resource.RLIM_INFINITY else soft
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (ValueError, OSError) as error:
        logger.info("the limit of open files stays at %s: %s", soft, error)
        return soft
    return wanted


def connection_limit(descriptors: int) -> int:
    """How many connections may be open at once under a limit of open files."""
    return max(FEWEST_CONNECTIONS, min(MOST_CONNECTIONS, descriptors - KEPT_FREE))
