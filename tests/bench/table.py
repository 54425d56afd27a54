"""The table that the benchmarks print, row by row as the figures come."""

from __future__ import annotations

import json
import resource
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Row:
    """One figure. ``aim`` is the target of the project, ``beside`` another figure to compare it with."""

    section: str
    figure: str
    value: str
    aim: str = ""
    beside: str = ""

    def as_markdown(self) -> str:
        return f"| {self.section} | {self.figure} | {self.value} | {self.aim} | {self.beside} |"


NOT_MEASURED = "not measured here"
"""The value of a row that stands for a section for which this machine lacks something."""
HEAD = "| what | figure | here | aim | compared with |\n|---|---|---|---|---|"


@dataclass
class Table:
    """Rows so far; printed at once, so that a benchmark that is cut short has said what it found."""

    rows: list[Row] = field(default_factory=list)

    def add(self, section: str, figure: str, value: str, *, aim: str = "", beside: str = "") -> None:
        row = Row(section, figure, value, aim, beside)
        if not self.rows:
            print(HEAD, flush=True)
        self.rows.append(row)
        print(row.as_markdown(), flush=True)

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "bench.json").write_text(json.dumps([asdict(row) for row in self.rows], indent=2))
        (folder / "bench.md").write_text("\n".join([HEAD, *(row.as_markdown() for row in self.rows)]) + "\n")


def percentile(values: Sequence[float], percent: float) -> float:
    """The value below which ``percent`` of the others lie, nearest rank."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms"


def ratio_of(ours: Sequence[float], theirs: Sequence[float]) -> str:
    """Ours over theirs, pair by pair: median, with the range; a shared machine drifts, and a pair drifts together."""
    pairs = [mine / other for mine, other in zip(ours, theirs, strict=True)]
    return f"{100 * statistics.median(pairs):.1f} % ({100 * min(pairs):.1f} to {100 * max(pairs):.1f})"


def highest_resident_bytes() -> int:
    """Of this process. On Linux not from getrusage: what that says begins with what the process was forked from held."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024
