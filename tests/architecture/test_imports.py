"""Whoever imports a module of the contract first gets it: nothing works only because something else was imported before."""

from __future__ import annotations

import json
import pkgutil
import subprocess
import sys
from pathlib import Path

from trainer_engine import contract

ROOT = Path(__file__).resolve().parents[2]
NAMES = [module.name for module in pkgutil.iter_modules(contract.__path__, f"{contract.__name__}.")]
EACH_FIRST = """
import importlib, json, sys
failures = {}
for name in json.loads(sys.argv[1]):
    for loaded in [loaded for loaded in sys.modules if loaded.startswith("trainer_engine")]:
        del sys.modules[loaded]
    try:
        importlib.import_module(name)
    except ImportError as error:
        failures[name] = str(error)
print(json.dumps(failures))
"""


def test_every_module_of_the_contract_can_be_the_first() -> None:
    done = subprocess.run([sys.executable, "-c", EACH_FIRST, json.dumps(NAMES)], capture_output=True, text=True, cwd=ROOT, check=True)
    assert json.loads(done.stdout) == {}
