"""A source, a caption strategy and a kind of media that no shipped one resembles work from a folder that nothing outside it names.

The source reads a zip archive, the captions come from a parquet table, the media are animations. They run in a process of their own: the
fields of datasets are made when the tables are first read.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.helpers.tiny_run import ROOT

FOLDER = ROOT / "tests/helpers/odd_source"
ROOMS = ("environments", "simpletuner_site", "trainer_engine", "training")


def test_the_odd_source_trains_moves_resumes_and_is_validated(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.helpers.odd_source.plugin", str(FOLDER / "checks.py")]
    environment = {**os.environ, "SIMPLETUNER_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:]


def test_no_file_outside_the_folder_knows_of_it() -> None:
    words = re.compile(r"\bzip(ped|file)?\b|\bodd_clips\b|\bcaption_table\b|\.anim\b")
    code = [
        path for room in ("config/datasets", "datasets", "caches", "batches") for path in (ROOT / "trainer_engine" / room).rglob("*.py")
    ]
    assert len(code) > 40
    named = {path.name: words.findall(text) for path in code if (text := without_zip_calls(path))}
    assert {name: found for name, found in named.items() if found} == {}


def without_zip_calls(path: Path) -> str:
    """The text of a file without calls of the builtin ``zip``."""
    return re.sub(r"\bzip\(", "(", path.read_text(encoding="utf-8"))
