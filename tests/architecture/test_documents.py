"""What the pages for people point at exists: files and headings behind links, and paths of the tree between backticks."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "environments" / "examples").rglob("*.md")),
]
TOP = ("docs", "environments", "simpletuner_site", "tests", "trainer_engine", "training")
LINK = re.compile(r"\]\(([^)\s]+)\)|<img src=\"([^\"]+)\"")
IN_BACKTICKS = re.compile(r"`([\w./-]+)`")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
FENCED = re.compile(r"^( *)```.*?^\1```$", re.DOTALL | re.MULTILINE)


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def prose(page: Path) -> str:
    """The text of a page without its blocks of code."""
    return FENCED.sub("", page.read_text(encoding="utf-8"))


def anchors(page: Path) -> set[str]:
    """The fragments that lead to a heading of a page, as GitHub makes them."""
    titles = (re.sub(r"[^\w\- ]", "", title.replace("`", "").lower()) for title in HEADING.findall(prose(page)))
    return {title.replace(" ", "-") for title in titles}


def broken_links(page: Path) -> list[str]:
    """Relative links of a page that lead to no file or to no heading."""
    broken = []
    for link in ("".join(found) for found in LINK.findall(prose(page))):
        if re.match(r"\w+:", link):
            continue
        path, _, fragment = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.is_file() or (fragment and fragment not in anchors(target)):
            broken.append(link)
    return broken


def missing_paths(page: Path) -> list[str]:
    """Paths between backticks that begin with a folder of the tree, or end with .py, and name nothing."""
    paths = [path for path in IN_BACKTICKS.findall(prose(page)) if "/" in path and not path.startswith(("/", "."))]
    ours = [path for path in paths if path.split("/")[0] in TOP or path.endswith(".py")]
    return [path for path in ours if not (ROOT / path.replace("simpletuner/examples", "environments/examples")).exists()]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_relative_link_of_a_page_leads_to_a_file_and_a_heading(page: Path) -> None:
    assert broken_links(page) == []


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_path_of_the_tree_that_a_page_names_exists(page: Path) -> None:
    assert missing_paths(page) == []


def test_every_page_that_the_code_names_exists() -> None:
    sources = [path for top in TOP if top not in ("docs", "tests") for path in (ROOT / top).rglob("*.py")]
    named = {page for path in sources for page in re.findall(r"docs/[\w-]+\.md", path.read_text(encoding="utf-8"))}
    assert len(named) > 5
    assert [page for page in sorted(named) if not (ROOT / page).is_file()] == []


def test_the_readme_links_every_page() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [name(page) for page in (ROOT / "docs").glob("*.md") if f"]({name(page)})" not in readme] == []


def test_a_broken_link_and_a_missing_path_are_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# One, two\n[a](gone.md) [b](#one-two) [c](#three) [d](https://x.y) `trainer_engine/gone.py` `training/models.py`\n")
    assert broken_links(page) == ["gone.md", "#three"]
    assert missing_paths(page) == ["trainer_engine/gone.py"]
