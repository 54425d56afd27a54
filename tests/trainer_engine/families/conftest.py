"""Marks slow what most families repeat: the fast tests have each proof of every family once, and its resumed runs for four families."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.params import OFTEN

FAMILIES = Path(__file__).parent
RUNS = ("test_a_run_that_was_stopped_and_resumed",)
"""What the engine does alike for every family."""
WITH_VARIANTS = (
    "test_an_image_equals",
    "test_clips_equal",
    "test_gradients_of_an_adapter",
    "test_images_equal",
    "test_loss_and_every_gradient",
)
"""Proofs of a family with several samplers, flavours or options, of which the first one stays."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    seen = set[tuple[Path, str]]()
    for item in items:
        if not item.path.is_relative_to(FAMILIES) or item.path.parent == FAMILIES or item.get_closest_marker("slow"):
            continue
        proof = item.path, item.name.partition("[")[0]
        is_variant = proof[1].startswith(WITH_VARIANTS) and proof in seen
        if item.path.parent.name not in OFTEN and (is_variant or proof[1].startswith(RUNS)):
            item.add_marker(pytest.mark.slow)
        seen.add(proof)
