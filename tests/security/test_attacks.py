"""No attack gets through, and status is answered during each of them. How quickly is printed by ``python -m tests.security``."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.security.attacks import collect

REPOSITORY = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.faults


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    file = tmp_path_factory.mktemp("attacks") / "results.json"
    command = [sys.executable, "-m", "tests.security", "--json", str(file)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert file.exists(), done.stdout + done.stderr
    yield {result["name"]: result for result in json.loads(file.read_text())}


@pytest.mark.parametrize("name", collect())
def test_the_server_holds_against_an_attack(name: str, results: dict[str, Any]) -> None:
    assert results[name]["through"] == []
    assert results[name]["unanswered"] == 0
