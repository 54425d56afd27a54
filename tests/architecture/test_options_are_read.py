"""An option that nothing reads would be accepted and ignored: this walks the registry and looks for the reader of each."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

from trainer_engine.config.options import REGISTRY

ROOT = Path(__file__).resolve().parents[2]
DECLARED_IN = ROOT / "trainer_engine" / "config" / "options"
CODE = ("trainer_engine", "training", "environments", "simpletuner_site")


@cache
def attributes_read() -> dict[str, set[str]]:
    """Attribute or key -> files outside the registry that read it."""
    found: dict[str, set[str]] = {}
    for top in CODE:
        for path in (ROOT / top).rglob("*.py"):
            if DECLARED_IN in path.parents or "migrations" in path.parts or _is_of_a_family(path):
                continue
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                name = node.attr if isinstance(node, ast.Attribute) else node.value if isinstance(node, ast.Constant) else None
                if isinstance(name, str):
                    found.setdefault(name, set()).add(str(path.relative_to(ROOT)))
    return found


def _is_of_a_family(path: Path) -> bool:
    return path.name == "options.py" and path.parents[1].name == "families"


READ_AS = {
    "validation_resolution": "resolutions",
    "validation_guidance_skip_layers_start": "skipped_layers",
    "validation_guidance_skip_layers_stop": "skipped_layers",
}
"""Options that are read through a property of their group."""
ASKING_FOR_SOMETHING = [name for name, spec in REGISTRY.items() if len(spec.choices) != 1]
"""An option with one choice left has nothing to be ignored."""


@pytest.mark.parametrize("name", ASKING_FOR_SOMETHING)
def test_every_option_has_a_reader(name: str) -> None:
    assert attributes_read().get(READ_AS.get(name, name)), f"{name} is declared, and no code reads it"
