"""Datasets that a run fetches when it starts: what their servers say about them in a few seconds, without downloading them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping

from trainer_engine.contract.errors import Problem, errors_in
from trainer_engine.datasets.report import DatasetReport
from trainer_engine.datasets.sources.base import kind_of

ASKING_SECONDS = 15.0
"""No further server is asked after this time."""


def remote_problems(report: DatasetReport, variables: Mapping[str, str]) -> Iterator[Problem]:
    """Yields the problems of datasets that are not on this machine, and a note about each that a run can fetch."""
    deadline = time.monotonic() + ASKING_SECONDS
    asked = {entry.id: entry for found in (*report.sets, *report.eval_sets) for entry in found.not_fetched}
    for entry in asked.values():
        ask = kind_of(entry).ask
        problems = list(ask(entry, variables)) if ask and time.monotonic() < deadline else []
        yield from problems
        if not errors_in(problems):
            message = f"dataset {entry.id}: {entry.place} is downloaded when the run starts. Its files are examined then."
            yield Problem.note(entry.place_option, "fetched_at_start", message, got=entry.place)
    for found in (*report.sets, *report.eval_sets):
        for entry in found.measured_later:
            message = f"dataset {entry.id}: {entry.place} is large. Its images are measured when the run starts."
            yield Problem.note(entry.place_option, "measured_at_start", message, got=entry.place)
