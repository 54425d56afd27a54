"""``python -m tests.bench.compare COMMIT SECTION ...``: the same benchmarks on this tree and on another commit, in turn.

The commit is checked out into a temporary folder. Each round measures that commit and this tree one after the other, so that a machine that
drifts slows both. The table gives the median of each, and the ratio round by round.
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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.bench.__main__ import ROOT
from tests.bench.table import ratio_of

NUMBER = re.compile(r"[\d,]*\.?\d+")
Figures = Mapping[tuple[str, str], tuple[float, str]]
"""(section, figure) -> (value, its unit)."""


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
    found = {}
    for row in rows:
        number = NUMBER.match(row["value"])
        if number:
            unit = row["value"][number.end() :].strip().partition(" ")[0].rstrip(",;:")
            found[row["section"], row["figure"]] = (float(number.group().replace(",", "")), unit)
    return found


def compared(before: Sequence[Figures], now: Sequence[Figures]) -> Iterator[str]:
    """One Markdown row for each figure that both trees have in every round, in the same unit."""
    yield "| what | figure | before | now | now / before |\n|---|---|---|---|---|"
    for key, (_, unit) in now[0].items():
        theirs, ours = [one.get(key) for one in before], [one.get(key) for one in now]
        pairs = [(old, new) for old, new in zip(theirs, ours, strict=True) if old and new and old[1] == new[1] == unit and old[0]]
        if len(pairs) < len(now):
            continue
        old, new = [pair[0][0] for pair in pairs], [pair[1][0] for pair in pairs]
        values = f"{statistics.median(old):g} {unit} | {statistics.median(new):g} {unit}"
        yield f"| {key[0]} | {key[1]} | {values} | {ratio_of(new, old)} |"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.compare", description=__doc__)
    parser.add_argument("commit", help="what this tree is compared with, such as HEAD~20")
    parser.add_argument("sections", nargs="+", metavar="SECTION")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    before, now = [], []
    with checkout(arguments.commit) as tree:
        for number in range(1, arguments.rounds + 1):
            print(f"round {number} of {arguments.rounds}", file=sys.stderr, flush=True)
            before.append(measure(tree, arguments.sections))
            now.append(measure(ROOT, arguments.sections))
    print("\n".join(compared(before, now)))


if __name__ == "__main__":
    main()
