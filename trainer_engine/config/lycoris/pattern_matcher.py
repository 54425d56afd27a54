"""Compiles and matches patterns in a separate process. It is run by its path and imports only the standard library.

It reads one JSON object from standard input: ``patterns``, ``names``, ``as_globs``, ``cpu_seconds`` and ``memory_bytes``. For each pattern,
in order, it writes one JSON line to standard output as soon as it is finished: ``{"trouble": str, "matches": bool}``. The first pattern
without a line used up the time.
"""

from __future__ import annotations

import fnmatch
import json
import re
import resource
import sys
from typing import Any


def limit_resources(cpu_seconds: int, memory_bytes: int) -> None:
    """Makes the kernel end this process after ``cpu_seconds``, and raise MemoryError beyond ``memory_bytes``."""
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    except (OSError, ValueError):
        pass  # macOS has no such limit


def verdict(pattern: str, names: list[str], as_globs: bool) -> dict[str, Any]:
    """Matches the pattern against every name, as LyCORIS does, to find names on which it never ends."""
    try:
        expression = re.compile(fnmatch.translate(pattern) if as_globs else pattern)
        return {"trouble": "", "matches": sum(expression.match(name) is not None for name in names) > 0}
    except MemoryError:
        return {"trouble": "it needs too much memory", "matches": False}
    except RecursionError:
        return {"trouble": "it is nested too deeply", "matches": False}
    except (re.error, ValueError, OverflowError) as error:
        return {"trouble": str(error), "matches": False}


def main() -> None:
    request = json.load(sys.stdin)
    limit_resources(request["cpu_seconds"], request["memory_bytes"])
    for pattern in request["patterns"]:
        print(json.dumps(verdict(pattern, request["names"], request["as_globs"])), flush=True)


if __name__ == "__main__":
    main()
