"""Servers of their own for tests that break things."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.live_server import start_server
from tests.helpers.served_runs import ServedRuns


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.faults)


@pytest.fixture(scope="module")
def shared_runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedRuns]:
    place = tmp_path_factory.mktemp("faults")
    with start_server(place / "home") as server:
        yield ServedRuns(server, place / "data")


@pytest.fixture
def runs(shared_runs: ServedRuns) -> Iterator[ServedRuns]:
    """A server with one slot, and data that the runs of a file share; no run is left to the next test."""
    yield shared_runs
    shared_runs.end_all()


@pytest.fixture
def two_at_a_time(tmp_path: Path) -> Iterator[ServedRuns]:
    """A server with two slots."""
    with start_server(tmp_path / "home", slots=2) as server:
        served = ServedRuns(server, tmp_path / "data")
        yield served
        served.end_all()
