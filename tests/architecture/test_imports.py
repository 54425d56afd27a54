"""Who imports whom: no cycles, torch-free modules that can be imported first, and apps that import only torch-free parts of the engine."""

from __future__ import annotations

import ast
import json
import pkgutil
import subprocess
import sys
from collections.abc import Container, Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from trainer_engine import config, contract

ROOT = Path(__file__).resolve().parents[2]
NAMES = [
    module.name
    for package in (contract, config)
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    if not module.name.endswith("pattern_matcher")  # a script of its own, run by its path
]
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
APPS = ("environments", "training")
TOP = ("environments", "simpletuner_site", "trainer_engine", "training")
OPEN_TO_APPS = ("trainer_engine.contract", "trainer_engine.config", "trainer_engine.datasets")
"""The packages of the engine that the apps import. They load no torch."""


@pytest.mark.slow
def test_every_module_of_contract_and_config_can_be_imported_first() -> None:
    done = subprocess.run([sys.executable, "-c", EACH_FIRST, json.dumps(NAMES)], capture_output=True, text=True, cwd=ROOT, check=True)
    assert json.loads(done.stdout) == {}


@pytest.mark.parametrize("app", APPS)
def test_an_app_imports_only_the_open_packages_of_the_engine(app: str) -> None:
    closed = {
        f"{path.relative_to(ROOT)}: {name}"
        for path in (ROOT / app).rglob("*.py")
        if "examples" not in path.parts  # scripts that run as processes of their own
        for name in engine_imports(path)
        if name != "trainer_engine" and not any(f"{name}.".startswith(f"{package}.") for package in OPEN_TO_APPS)
    }
    assert closed == set()


def test_the_imports_of_the_files_form_no_cycle() -> None:
    files = {module_name(path): path for top in TOP for path in (ROOT / top).rglob("*.py") if "examples" not in path.parts}
    graph = {name: set(imports(path, files)) - {name} for name, path in files.items()}
    assert len(graph) > 200
    TopologicalSorter(graph).prepare()  # raises CycleError with the files


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path, known: Container[str]) -> Iterator[str]:
    """The known modules that a file imports, at its top or inside a function."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module in known:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in known else node.module for name in names)


def engine_imports(path: Path) -> Iterator[str]:
    """The modules of the engine that a file imports, at its top or inside a function."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "trainer_engine")
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "trainer_engine":
            for alias in node.names:
                yield f"{node.module}.{alias.name}" if node.module == "trainer_engine" else str(node.module)
