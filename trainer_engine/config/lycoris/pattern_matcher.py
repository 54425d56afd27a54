"""Compiles and matches patterns in a process of its own; run by its path, imports the standard library only.

Standard input holds one JSON object: ``patterns``, ``names``, ``as_globs``, ``cpu_seconds`` and ``memory_bytes``. Standard output gets one
JSON line for each pattern, in order, as soon as it is finished: ``{"trouble": str, "matches": bool}``. A pattern without a line is the one
that used up the time.
"""

from __future__ import annotations

import fnmatch
import json
import re
import resource
import sys
from typing import Any


def limit_resources(cpu_seconds: int, memory_bytes: int) -> None:
    """The kernel ends this process when its time is used up; too much memory is a MemoryError."""
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    except (OSError, ValueError):
        pass  # macOS has no such limit


def verdict(pattern: str, names: list[str], as_globs: bool) -> dict[str, Any]:
    """Matches the pattern against every name, as LyCORIS does, so that a name on which it never ends is found."""
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
    asked = json.load(sys.stdin)
    limit_resources(asked["cpu_seconds"], asked["memory_bytes"])
    for pattern in asked["patterns"]:
        print(json.dumps(verdict(pattern, asked["names"], asked["as_globs"])), flush=True)


if __name__ == "__main__":
    main()
