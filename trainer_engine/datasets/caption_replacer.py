"""Applies caption filters in a separate process. It is run by its path and imports only the standard library.

It reads one JSON object from standard input: ``rules``, ``captions``, ``cpu_seconds``, ``memory_bytes`` and ``longest``. A rule has
``text``, which is removed as it stands, and ``find``, ``replace`` and ``ignore_case`` of a regular expression; ``optional`` says that
``find`` need not be a valid one. After each rule, in order, it writes one JSON line to standard output: why the rule cannot be applied, or
an empty text. The last line is the list of changed captions. The first rule without a line used up the time.
"""

from __future__ import annotations

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


def applied(rule: dict[str, Any], captions: list[str], longest: int) -> tuple[list[str], str]:
    """Returns the captions after a rule, and an empty text, or the captions as they are and why the rule cannot be applied."""
    changed = [caption.replace(rule["text"], "") for caption in captions] if rule["text"] else captions
    try:
        expression = re.compile(rule["find"], re.IGNORECASE if rule["ignore_case"] else 0)
        changed = [expression.sub(rule["replace"], caption) for caption in changed]
    except MemoryError:
        return captions, "it needs too much memory"
    except RecursionError:
        return captions, "it is nested too deeply"
    except (re.error, ValueError, OverflowError, IndexError) as error:
        return (changed, "") if rule["optional"] else (captions, f"it is not a regular expression: {error}")
    if any(len(caption) > longest for caption in changed):
        return captions, f"it makes a caption longer than {longest} characters"
    return changed, ""


def main() -> None:
    request = json.load(sys.stdin)
    limit_resources(request["cpu_seconds"], request["memory_bytes"])
    captions = request["captions"]
    for rule in request["rules"]:
        captions, trouble = applied(rule, captions, request["longest"])
        print(json.dumps(trouble), flush=True)
    print(json.dumps(captions), flush=True)


if __name__ == "__main__":
    main()
