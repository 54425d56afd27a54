"""Matches patterns of users with the semantics of LyCORIS, without compiling them in this process.

A pattern without repeats is matched here in linear time. All others go to a helper process with limits for time and memory.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer_engine.config.helper_process import MEMORY_BYTES, lines_of

MATCHER = Path(__file__).with_name("pattern_matcher.py")
CPU_SECONDS = 2
"""For all patterns of an adapter file together; ordinary ones take milliseconds."""
WALL_SECONDS = 30.0
"""Only reached on an overloaded machine."""
PLAIN_EXPRESSION = re.compile(r"[\w.-]*", re.ASCII)
PLAIN_GLOB = re.compile(r"[^*?\[]*")
MOST_MATCHED_HERE = 50
"""Limit of plain patterns matched in this process. If there are more, the helper matches them."""


@dataclass(frozen=True)
class Verdict:
    """Result of matching one pattern."""

    matches: bool = False
    """Whether at least one name matches."""
    trouble: str = ""
    """Why the pattern is not valid; empty if it is."""
    is_slow: bool = False
    """Whether matching did not finish within ``CPU_SECONDS``."""


def judge(patterns: Sequence[str], names: Collection[str], *, as_globs: bool) -> dict[str, Verdict]:
    """Returns the verdict of each pattern. With ``as_globs`` patterns are file-name patterns (``use_fnmatch``), else regular expressions.

    Patterns after one that is too slow have no verdict, since it used up their time.
    """
    plain = PLAIN_GLOB if as_globs else PLAIN_EXPRESSION
    here = [one for one in patterns if plain.fullmatch(one)] if len(patterns) <= MOST_MATCHED_HERE else []
    judged = {one: Verdict(_plain_matches(one, names, as_globs)) for one in here}
    others = [one for one in dict.fromkeys(patterns) if one not in judged]
    if others:
        judged |= _judged_by_helper(others, names, as_globs)
    return judged


def _plain_matches(pattern: str, names: Collection[str], as_globs: bool) -> bool:
    """Matches like ``fnmatch`` without wildcards, or like ``re.match`` with the dot as the only special character."""
    if as_globs:
        return pattern in names
    return any(len(pattern) <= len(name) and all(p in (".", n) for p, n in zip(pattern, name, strict=False)) for name in names)


def _judged_by_helper(patterns: Sequence[str], names: Collection[str], as_globs: bool) -> dict[str, Verdict]:
    request = {
        "patterns": patterns,
        "names": sorted(names),
        "as_globs": as_globs,
        "cpu_seconds": CPU_SECONDS,
        "memory_bytes": MEMORY_BYTES,
    }
    try:
        lines = lines_of(MATCHER, json.dumps(request).encode("ascii"), wall_seconds=WALL_SECONDS)
    except OSError as error:
        return {one: Verdict(trouble=f"it could not be examined ({error.strerror})") for one in patterns}
    judged: dict[str, Verdict] = {}
    for pattern, line in zip(patterns, lines, strict=False):
        found = json.loads(line)
        judged[pattern] = Verdict(found["matches"] or pattern in names, found["trouble"])
    if len(judged) < len(patterns):
        judged[patterns[len(judged)]] = Verdict(is_slow=True)
    return judged
