"""The benchmark of the options that save memory, on a network so small that a CPU takes it."""

from __future__ import annotations

import pytest
import torch

from tests.bench.gpu_device import Subject
from tests.bench.gpu_memory import CASES, measure, run
from tests.bench.table import Table
from tests.bench.test_gpu_flux import TINY
from trainer_engine.config.options import REGISTRY


@pytest.mark.slow
def test_every_case_is_timed_beside_the_first() -> None:
    table = Table()
    measure(table, Subject(device=torch.device("cpu"), architecture=TINY, latent_edge=8, tokens=4, steps=1, rounds=2))
    assert [row.figure for row in table.rows] == list(CASES)
    assert all("s a step" in row.value and "of the first row's time" in row.beside for row in table.rows)


def test_every_case_names_options_that_exist() -> None:
    assert {name for memory in CASES.values() for name in memory} <= set(REGISTRY)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_machine_without_a_gpu_gets_one_row() -> None:
    table = Table()
    run(table)
    assert [row.value for row in table.rows] == ["not measured here"]
