"""``python -m tests.bench [SECTION ...]``: run the benchmarks and print their table; ``--readme`` puts it into the README."""

from __future__ import annotations

import argparse
import importlib
import os
import re
from pathlib import Path

from tests.bench.table import HEAD, Table

SECTIONS = (
    *("server", "latency", "journey", "watching", "training", "host", "adapters"),
    *("saving", "stall", "plan", "caching", "gpu", "gpu_flux"),
)
ROOT = Path(__file__).resolve().parents[2]
MARKED = re.compile(r"<!-- bench -->.*<!-- /bench -->", re.DOTALL)


def put_into_readme(table: Table) -> None:
    """Between the README's two marks."""
    readme = ROOT / "README.md"
    rows = "\n".join([HEAD, *(row.as_markdown() for row in table.rows)])
    text = MARKED.sub(lambda _: f"<!-- bench -->\n{rows}\n<!-- /bench -->", readme.read_text(encoding="utf-8"))
    readme.write_text(text, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description="Measure; asserts nothing about time.")
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"some of: {', '.join(SECTIONS)} (default: all)")
    parser.add_argument("--readme", action="store_true", help="put the table into README.md")
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.sections) - set(SECTIONS))
    if unknown:
        parser.error(f"unknown sections: {', '.join(unknown)}; known: {', '.join(SECTIONS)}")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    table = Table()
    for section in arguments.sections or SECTIONS:
        importlib.import_module(f"tests.bench.{section}").run(table)
    table.save(ROOT / "bench-output")
    if arguments.readme:
        put_into_readme(table)


if __name__ == "__main__":
    main()
