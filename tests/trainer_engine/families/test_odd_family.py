"""A family that no shipped one resembles trains from a folder that nothing outside it names.

It has latents of five dimensions, two trained networks, inputs from facts of a sample, prompts of different lengths that need a mask and
see images, and patches of one cell. It runs in a process of its own: the registry of options is made when families are first discovered.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.helpers.tiny_run import ROOT

FOLDER = ROOT / "tests/helpers/odd_family"


def test_the_odd_family_trains_resumes_evaluates_generates_and_saves(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.helpers.odd_family.plugin", str(FOLDER / "checks.py")]
    environment = {**os.environ, "SIMPLETUNER_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:]
