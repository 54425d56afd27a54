"""The code runs on Python 3.10: the interpreter of these tests may be newer, and would not notice."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CODE = ("trainer_engine", "training", "environments", "simpletuner_site")
NEWER = {
    "enum": {"StrEnum", "verify", "member", "nonmember"},
    "datetime": {"UTC"},
    "typing": {
        "Self",
        "Never",
        "LiteralString",
        "assert_never",
        "reveal_type",
        "override",
        "TypeVarTuple",
        "Unpack",
        "Required",
        "NotRequired",
    },
    "contextlib": {"chdir"},
    "itertools": {"batched"},
    "tomllib": set(),
}
"""Module -> names that are not in the standard library of 3.10; an empty set stands for the whole module."""


def test_no_module_imports_what_python_3_10_does_not_have() -> None:
    found = [
        f"{path.relative_to(ROOT)}: {node.module}.{alias.name}"
        for top in CODE
        for path in (ROOT / top).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.module in NEWER
        for alias in node.names
        if not NEWER[node.module] or alias.name in NEWER[node.module]
    ]
    assert found == []
