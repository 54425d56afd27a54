"""Which libraries of adapters a run loads."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.models import tiny_pixart
from tests.helpers.tiny_run import ROOT
from tests.trainer_engine.adapters.test_runs import LOKR, STANDARD, lycoris

PROGRAM = """
import json, sys
import trainer_engine.loop.run
from tests.helpers.models import tiny_family
from trainer_engine.adapters.build import make_trainable

trainable = make_trainable(tiny_family(**json.loads(sys.argv[1])), None)
assert trainable.parameters
print(json.dumps([name for name in ("lycoris", "optimum.quanto", "trainer_engine.adapters.lora") if name in sys.modules]))
"""


@pytest.mark.parametrize(
    ("kind", "precision", "wanted"),
    [
        ("full", "no_change", []),
        ("standard", "no_change", ["trainer_engine.adapters.lora"]),
        ("lycoris", "int8-quanto", ["lycoris", "optimum.quanto"]),
    ],
)
def test_a_run_loads_only_the_libraries_of_its_own_adapter(kind: str, precision: str, wanted: list[str], tmp_path: Path) -> None:
    values = {"full": {}, "standard": STANDARD, "lycoris": lycoris(tmp_path, **LOKR)}[kind]
    values = {**values, "base_model_precision": precision, "pretrained_model_name_or_path": str(tiny_pixart())}
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", PROGRAM, json.dumps(values)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    # NOTE: PEFT itself is in each of them: diffusers loads it for its own use wherever it is installed.
    assert json.loads(done.stdout.splitlines()[-1]) == wanted
