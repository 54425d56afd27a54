"""What the families' folders of tests state for the tests that all families share."""

from __future__ import annotations

from collections.abc import Collection
from importlib import import_module
from pathlib import Path
from typing import Any

from trainer_engine.config.families import specs

PACKAGE = "tests.trainer_engine.families"
FOLDER = Path(__file__).parents[1] / "trainer_engine" / "families"


def stated(module: str, name: str) -> dict[str, Any]:
    """Folder -> ``name`` of ``module`` in it, for every folder that has this module."""
    found = sorted(path.parent.name for path in FOLDER.glob(f"*/{module}.py"))
    return {folder: getattr(import_module(f"{PACKAGE}.{folder}.{module}"), name) for folder in found}


def assert_all_state(module: str, name: str, found: Collection[str]) -> None:
    """Fails with the files that families lack. ``found``: the families that have theirs."""
    lacking = [f"tests/trainer_engine/families/{family}/{module}.py with {name}" for family in specs() if family not in found]
    assert not lacking, f"a family's folder of tests has it: {', '.join(lacking)}"
    assert set(found) <= set(specs()), "a folder of tests states it for a family that is not here"
