"""Patterns of users, matched with the semantics of LyCORIS without ever compiling one in this process.

Python's ``re`` holds the GIL: one pattern with nested repeats stops every thread of a server, and even SIGTERM. A pattern without any
repeat is matched here in linear time; all others go to one helper process that has limits for time and memory.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

MATCHER = Path(__file__).with_name("pattern_matcher.py")
CPU_SECONDS = 2
"""For all patterns of an adapter file together; ordinary ones take milliseconds."""
WALL_SECONDS = 30.0
"""Only reached on a machine that is overloaded."""
MEMORY_BYTES = 1024**3
PLAIN_EXPRESSION = re.compile(r"[\w.-]*", re.ASCII)
PLAIN_GLOB = re.compile(r"[^*?\[]*")
MOST_MATCHED_HERE = 50
"""Plain patterns; more of them go to the helper as well, which has limits."""
HELPERS = threading.BoundedSemaphore(2)
"""Helper processes that one server runs at the same time."""


@dataclass(frozen=True)
class Verdict:
    """What is known about one pattern."""

    matches: bool = False
    """Whether at least one name matches."""
    trouble: str = ""
    """Why it is no pattern; empty if it is one."""
    is_slow: bool = False
    """It did not finish within ``CPU_SECONDS``."""


def judge(patterns: Sequence[str], names: Collection[str], *, as_globs: bool) -> dict[str, Verdict]:
    """Pattern -> verdict. ``as_globs``: patterns are those of file names (``use_fnmatch``), else regular expressions.

    The patterns after one that is too slow have no verdict: its time was theirs as well.
    """
    plain = PLAIN_GLOB if as_globs else PLAIN_EXPRESSION
    here = [one for one in patterns if plain.fullmatch(one)] if len(patterns) <= MOST_MATCHED_HERE else []
    judged = {one: Verdict(_plain_matches(one, names, as_globs)) for one in here}
    others = [one for one in dict.fromkeys(patterns) if one not in judged]
    if others:
        judged |= _judged_by_helper(others, names, as_globs)
    return judged


def _plain_matches(pattern: str, names: Collection[str], as_globs: bool) -> bool:
    """As ``fnmatch`` without wildcards, or as ``re.match`` where a dot is the only special character."""
    if as_globs:
        return pattern in names
    return any(len(pattern) <= len(name) and all(p in (".", n) for p, n in zip(pattern, name, strict=False)) for name in names)


def _judged_by_helper(patterns: Sequence[str], names: Collection[str], as_globs: bool) -> dict[str, Verdict]:
    asked = {
        "patterns": patterns,
        "names": sorted(names),
        "as_globs": as_globs,
        "cpu_seconds": CPU_SECONDS,
        "memory_bytes": MEMORY_BYTES,
    }
    with HELPERS:
        try:
            lines = _lines_of_helper(json.dumps(asked).encode("ascii"))
        except OSError as error:
            return {one: Verdict(trouble=f"it could not be examined ({error.strerror})") for one in patterns}
    judged: dict[str, Verdict] = {}
    for pattern, line in zip(patterns, lines, strict=False):
        found = json.loads(line)
        judged[pattern] = Verdict(found["matches"] or pattern in names, found["trouble"])
    if len(judged) < len(patterns):
        judged[patterns[len(judged)]] = Verdict(is_slow=True)
    return judged


def _lines_of_helper(request: bytes) -> list[bytes]:
    """The complete lines that the helper wrote before it ended. Raises OSError where it cannot be started."""
    with subprocess.Popen(
        [sys.executable, "-I", "-S", str(MATCHER)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd="/",
        start_new_session=True,
    ) as helper:
        try:
            output, _ = helper.communicate(request, timeout=WALL_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(helper.pid, signal.SIGKILL)
            output, _ = helper.communicate()
        finally:
            if helper.poll() is None:
                os.killpg(helper.pid, signal.SIGKILL)
    *lines, _ = output.split(b"\n")
    return lines
