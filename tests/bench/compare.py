"""``python -m tests.bench.compare COMMIT SECTION ...``: the same benchmarks on this tree and on another commit, in turn.

The commit is checked out into a temporary folder, and measured by its own benchmarks. Each round measures both trees, in
an order that changes from round to round, so that a machine that drifts slows both. The table gives the median of each, and the ratio round
by round; the rows that only one of the trees has follow it.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.bench.__main__ import ROOT
from tests.bench.table import ratio_of

NUMBER = re.compile(r"[\d,]*\.?\d+")
MEASURED = re.compile(r"[\d,]*\.?\d+(?= (?:MB|steps|events)\b)")
"""Numbers in the name of a figure that are measured themselves, and differ from run to run."""
Key = tuple[str, str, int]
"""(section, name of the figure, how many rows of that name stand before it)."""
Figures = Mapping[Key, tuple[float, str]]
"""Row -> (value, its unit)."""


@contextmanager
def checkout(commit: str) -> Iterator[Path]:
    """The tree of a commit, in a folder that is removed afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        subprocess.run(["git", "worktree", "add", "--quiet", "--detach", str(tree), commit], cwd=ROOT, check=True)
        try:
            yield tree
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", str(tree)], cwd=ROOT, check=True)


def measure(tree: Path, sections: Sequence[str]) -> Figures:
    """The figures of the sections, measured by the code of ``tree``."""
    environment = os.environ | {"PYTHONPATH": str(tree)}
    subprocess.run([sys.executable, "-m", "tests.bench", *sections], cwd=tree, env=environment, check=True, stdout=subprocess.DEVNULL)
    return figures_in(json.loads((tree / "bench-output/bench.json").read_text(encoding="utf-8")))


def figures_in(rows: Sequence[Mapping[str, str]]) -> Figures:
    """The leading number of each row's value; rows without one are left out."""
    found: dict[Key, tuple[float, str]] = {}
    seen: Counter[tuple[str, str]] = Counter()
    for row in rows:
        name = (row["section"], MEASURED.sub("…", row["figure"]))
        number = NUMBER.match(row["value"])
        if number:
            unit = row["value"][number.end() :].strip().partition(" ")[0].rstrip(",;:")
            found[(*name, seen[name])] = (float(number.group().replace(",", "")), unit)
        seen[name] += 1
    return found


def compared(before: Sequence[Figures], now: Sequence[Figures]) -> Iterator[str]:
    """One Markdown row for each figure that both trees have in every round, in the same unit; then the names of the other rows."""
    yield "| what | figure | before | now | now / before |\n|---|---|---|---|---|"
    rounds = [*before, *now]
    for key, (_, unit) in now[0].items():
        if is_common(key, rounds):
            old, new = [one[key][0] for one in before], [one[key][0] for one in now]
            values = f"{statistics.median(old):g} {unit} | {statistics.median(new):g} {unit}"
            yield f"| {key[0]} | {key[1]} | {values} | {ratio_of(new, old)} |"
    for tree, figures in (("before", before), ("now", now)):
        for section, name, _ in (key for key in figures[0] if not is_common(key, rounds)):
            yield f"not compared, {tree}: {section}: {name}"


def is_common(key: Key, rounds: Sequence[Figures]) -> bool:
    """Whether a row has a value in every round, in one unit, that can be divided by."""
    found = [figures.get(key) for figures in rounds]
    return all(one is not None and one[0] for one in found) and len({one[1] for one in found if one}) == 1


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.compare", description=__doc__)
    parser.add_argument("commit", help="what this tree is compared with, such as HEAD~20")
    parser.add_argument("sections", nargs="+", metavar="SECTION")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    before: list[Figures] = []
    now: list[Figures] = []
    with checkout(arguments.commit) as tree:
        for number in range(1, arguments.rounds + 1):
            print(f"round {number} of {arguments.rounds}", file=sys.stderr, flush=True)
            turns = [(tree, before), (ROOT, now)]
            for place, found in turns if number % 2 else reversed(turns):
                found.append(measure(place, arguments.sections))
    print("\n".join(compared(before, now)))


if __name__ == "__main__":
    main()
