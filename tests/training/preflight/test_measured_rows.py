"""Every row of the table of ``docs/memory.md`` that a CPU can train is measured on a small model, and is within 10 % of the estimate."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.bench.published import NETWORKS
from tests.helpers.family_folders import assert_all_state
from tests.helpers.measured_steps import EDGE, make_wide, measured_and_estimated, measured_options
from tests.helpers.params import OFTEN, first_fast
from tests.helpers.pictures import generate_images
from trainer_engine.config.families import specs
from training.preflight.memory_table import OFFLOADS, TYPES, training_rows

TOLERANCE = 0.10
SWAPPED = 2
"""Blocks that wait on the host: half of four."""
Cell = tuple[str, str, dict[str, Any]]
"""Family, name of the offload, options."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("rows")
    generate_images(place / "images", count=8, size=(2 * EDGE, 2 * EDGE))
    return place


def cells() -> Iterator[Cell]:
    """Those of every family, with gradient checkpointing as in the table; float32 stands for bfloat16."""
    for family, spec in specs().items():
        for row in training_rows(spec, SWAPPED):
            for offload, values in zip(OFFLOADS, row.cells, strict=False):
                yield family, offload, {**values, "gradient_checkpointing": True}


def title(cell: Cell) -> str:
    family, offload, values = cell
    return f"{family} {values.get('base_model_precision', 'full')} {offload}"


def check(place: Path, cell: Cell) -> None:
    family, _, values = cell
    if not (place / family).exists():
        make_wide(family, place / family)
    measured, estimated = measured_and_estimated(place, measured_options(place, family, values))
    assert (1 - TOLERANCE) * measured <= estimated <= (1 + TOLERANCE) * measured


ALL = list(cells())
FIRST = [cell for cell in ALL if cell[1] == "none" and cell[2].get("base_model_precision") == "no_change"]


def test_every_family_has_a_model_that_is_wide_enough() -> None:
    assert_all_state("network", "NETWORK", [family for family, network in NETWORKS.items() if network.wider])
    assert {family for family, _, _ in FIRST} == set(specs())


def test_every_type_and_offload_of_the_table_is_measured() -> None:
    seen = {(offload, values["base_model_precision"]) for _, offload, values in ALL if values["model_type"] == "lora"}
    assert seen == {(offload, base) for offload in OFFLOADS for base in TYPES}
    assert {family for family, _, values in ALL if values["model_type"] == "full"} == set(specs())


@pytest.mark.parametrize("cell", first_fast(sorted(FIRST, key=lambda cell: cell[0] not in OFTEN), 2), ids=title)
def test_the_estimate_of_an_adapter_is_what_a_step_holds(cell: Cell, place: Path) -> None:
    check(place, cell)


@pytest.mark.slow
@pytest.mark.parametrize("cell", [cell for cell in ALL if cell not in FIRST], ids=title)
def test_the_estimate_of_a_row_is_what_a_step_holds(cell: Cell, place: Path) -> None:
    check(place, cell)


@pytest.mark.slow
@pytest.mark.parametrize("cell", [cell for cell in ALL if cell[1] == "none"], ids=title)
def test_the_estimate_without_gradient_checkpointing_is_what_a_step_holds(cell: Cell, place: Path) -> None:
    family, offload, values = cell
    check(place, (family, offload, {**values, "gradient_checkpointing": False}))
