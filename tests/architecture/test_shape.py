"""The habits that keep the tree readable: sizes, one broad except a process edge, no globals, one reader of the environment."""

from __future__ import annotations

import ast
import statistics
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CODE = ("trainer_engine", "training", "environments", "simpletuner_site")
LONGEST_FUNCTION = 60
BROAD_EXCEPTS = 3
"""The engine's process edge, the follower, and the thread of a tracker."""


READERS_OF_THE_ENVIRONMENT = {
    "simpletuner_site/environment.py",  # the web's reader
    "simpletuner_site/asgi.py",  # names the settings module, as Django asks every entry point to
    "simpletuner_site/server/boot.py",  # hands the command line's choices to the processes it starts
    "simpletuner_site/demo/processes.py",  # a child's environment is its parent's and more
    "training/engine/process.py",  # the same, cut to an allow-list
    "trainer_engine/runtime/environment.py",  # the engine's reader
    "trainer_engine/config/hub.py",  # the hub's settings, which its library reads by itself
    "environments/examples/external-validation/hosted_service.py",  # scripts of runs are processes of their own
    "environments/examples/external-validation/second_device.py",
}


def modules() -> list[Path]:
    paths = [path for top in CODE for path in sorted((ROOT / top).rglob("*.py")) if "migrations" not in path.parts]
    return [path for path in paths if path.read_text(encoding="utf-8").strip()]


@cache
def nodes(path: Path) -> list[ast.AST]:
    """Of a module, which many tests look through."""
    return list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


def test_files_stay_short() -> None:
    lengths = sorted(len([line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]) for path in modules())
    assert statistics.median(lengths) <= 120
    assert lengths[int(len(lengths) * 0.9)] <= 300


def test_no_function_is_longer_than_a_screen() -> None:
    long = [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"
        for path in modules()
        for node in nodes(path)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        and (node.end_lineno or node.lineno) - node.lineno + 1 > LONGEST_FUNCTION
    ]
    assert long == []


def test_nothing_is_caught_broadly_but_at_the_edges() -> None:
    broad = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in modules()
        for node in nodes(path)
        if isinstance(node, ast.ExceptHandler)
        and (node.type is None or (isinstance(node.type, ast.Name) and node.type.id in ("Exception", "BaseException")))
        and not (node.body and isinstance(node.body[-1], ast.Raise) and node.body[-1].exc is None)
    ]
    assert len(broad) <= BROAD_EXCEPTS, broad


def test_no_module_keeps_global_state() -> None:
    assert [f"{path.relative_to(ROOT)}:{node.lineno}" for path in modules() for node in nodes(path) if isinstance(node, ast.Global)] == []


def test_the_environment_is_read_in_one_place_a_process() -> None:
    readers = {
        str(path.relative_to(ROOT))
        for path in modules()
        for node in nodes(path)
        if isinstance(node, ast.Attribute)
        and node.attr in ("environ", "getenv")
        and isinstance(node.value, ast.Name)
        and node.value.id == "os"
    }
    assert readers == READERS_OF_THE_ENVIRONMENT


def test_no_module_names_a_family_in_a_branch() -> None:
    families = {path.name for path in (ROOT / "trainer_engine" / "families").iterdir() if path.is_dir() and not path.name.startswith("_")}
    named = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in modules()
        if "families" not in path.parts and "demo" not in path.parts and "examples" not in path.parts
        for node in nodes(path)
        if isinstance(node, ast.Compare)
        and any(isinstance(part, ast.Constant) and part.value in families for part in [node.left, *node.comparators])
    ]
    assert named == []
