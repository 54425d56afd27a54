"""``python -m tests.bench [SECTION ...]``: run the benchmarks and print their table; ``--docs`` writes it into the documents."""

from __future__ import annotations

import argparse
import importlib
import os
import re
from collections.abc import Iterable
from pathlib import Path

from tests.bench.table import HEAD, NOT_MEASURED, Table

SECTIONS = (
    *("server", "latency", "journey", "watching", "page", "training", "host", "lokr", "adapters"),
    *("families", "saving", "stall", "plan", "caching", "padding", "discovery", "warm", "gpu", "gpu_flux", "gpu_memory"),
)
ROOT = Path(__file__).resolve().parents[2]
MARKED = re.compile(r"<!-- bench -->\n(.*)<!-- /bench -->", re.DOTALL)


def write_page(table: Table, page: Path) -> None:
    """Replace rows between the two marks of ``docs/benchmarks.md`` by those of the table: all rows of each section that was measured.

    A section keeps its place. One that could not be measured on this machine keeps its rows.
    """
    measured = _by_section(row.as_markdown() for row in table.rows if row.value != NOT_MEASURED)
    _, _, *lines = _marked(page.read_text(encoding="utf-8")).splitlines()
    _replace_rows(page, [line for rows in (_by_section(lines) | measured).values() for line in rows])


def quote_in_readme(table: Table, readme: Path) -> None:
    """Give each row that the README quotes the value just measured; a row that was not measured keeps the value that it has."""
    measured = {_subject(line): line for line in (row.as_markdown() for row in table.rows)}
    _, _, *quoted = _marked(readme.read_text(encoding="utf-8")).splitlines()
    _replace_rows(readme, [measured.get(_subject(line), line) for line in quoted])


def _marked(text: str) -> str:
    """The table between the two marks. Raises ValueError for a page without marks."""
    found = MARKED.search(text)
    if found is None:
        raise ValueError("the page has no <!-- bench --> ... <!-- /bench -->")
    return found[1]


def _by_section(lines: Iterable[str]) -> dict[str, list[str]]:
    """The rows of each section, in the order of their first rows."""
    found: dict[str, list[str]] = {}
    for line in lines:
        found.setdefault(_subject(line)[0], []).append(line)
    return found


def _subject(line: str) -> tuple[str, ...]:
    """What a row of the table measures: its first two columns."""
    return tuple(cell.strip() for cell in line.split("|")[1:3])


def _replace_rows(page: Path, rows: list[str]) -> None:
    text = page.read_text(encoding="utf-8")
    table = "\n".join([HEAD, *rows, ""])
    page.write_text(text.replace(_marked(text), table), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description="Measure; asserts nothing about time.")
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"some of: {', '.join(SECTIONS)} (default: all)")
    parser.add_argument("--docs", action="store_true", help="write the rows to docs/benchmarks.md, and to README.md those that it quotes")
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.sections) - set(SECTIONS))
    if unknown:
        parser.error(f"unknown sections: {', '.join(unknown)}; known: {', '.join(SECTIONS)}")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    table = Table()
    for section in arguments.sections or SECTIONS:
        importlib.import_module(f"tests.bench.{section}").run(table)
    table.save(ROOT / "bench-output")
    if arguments.docs:
        write_page(table, ROOT / "docs" / "benchmarks.md")
        quote_in_readme(table, ROOT / "README.md")


if __name__ == "__main__":
    main()
