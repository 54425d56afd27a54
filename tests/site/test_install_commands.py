"""The commands that install the project install this project."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
EXTRAS = re.compile(r"pip install '\.\[([\w,]+)\]'")


def test_no_command_takes_the_package_of_that_name_from_the_public_index() -> None:
    sources = [
        path for folder in ("trainer_engine", "training", "environments", "simpletuner_site") for path in (ROOT / folder).rglob("*.py")
    ]
    for path in [*PAGES, *sources]:
        assert not re.search(r"pip install '?simpletuner", path.read_text(encoding="utf-8")), path


def test_every_extra_that_is_named_exists_and_wheels_of_torch_have_their_index() -> None:
    table = (ROOT / "pyproject.toml").read_text(encoding="utf-8").partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    extras = re.findall(r"^(\w+) = \[", table, re.MULTILINE)
    for page in PAGES:
        for line in page.read_text(encoding="utf-8").splitlines():
            for found in EXTRAS.findall(line):
                assert set(found.split(",")) <= set(extras), (page, found)
                for wheel in {"rocm", "cpu"} & set(found.split(",")):
                    assert f"--extra-index-url https://download.pytorch.org/whl/{wheel}" in line, (page, line)
