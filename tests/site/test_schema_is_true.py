"""The schema that the server publishes is what the server does: schemathesis sends what it allows, and what it forbids."""

from __future__ import annotations

from pathlib import Path

import pytest

from simpletuner_site.asgi import django_application
from tests.helpers.jobs import make_job
from tests.helpers.schema_checks import failures

RUNS = [pytest.param(4, False, id="4"), pytest.param(100, True, marks=pytest.mark.faults, id="100")]


@pytest.mark.parametrize(("examples", "every_phase"), RUNS)
def test_the_server_does_what_its_schema_says(examples: int, every_phase: bool, home: Path, transactional_db: None) -> None:
    make_job(home)
    found = sorted(set(failures(django_application, examples, every_phase=every_phase)))
    assert not found, "\n".join(found)
