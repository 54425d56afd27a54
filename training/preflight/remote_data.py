"""Datasets that a run fetches when it starts: what their servers say about them in a few seconds, without downloading them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from trainer_engine.contract.errors import Problem, errors_in
from trainer_engine.datasets.report import DatasetReport
from trainer_engine.datasets.sources.base import RemoteFacts, kind_of
from training.preflight.disk import DiskUse

ASKING_SECONDS = 15.0
"""No further server is asked after this time."""


@dataclass
class RemoteData:
    """What is known of datasets that are not on this machine."""

    problems: list[Problem] = field(default_factory=list)
    uses: list[DiskUse] = field(default_factory=list)
    """What a run downloads for them."""


def ask_servers(report: DatasetReport, variables: Mapping[str, str]) -> RemoteData:
    """Returns the problems of datasets that are not on this machine, a note about each that a run can fetch, and what it downloads."""
    deadline, found = time.monotonic() + ASKING_SECONDS, RemoteData()
    asked = {entry.id: entry for one in (*report.sets, *report.eval_sets) for entry in one.not_fetched}
    for entry in asked.values():
        ask = kind_of(entry).ask
        facts = ask(entry, variables) if ask and time.monotonic() < deadline else RemoteFacts()
        found.problems += facts.problems
        if not errors_in(facts.problems):
            message = f"dataset {entry.id}: {entry.place} is downloaded when the run starts. Its files are examined then."
            found.problems.append(Problem.note(entry.place_option, "fetched_at_start", message, got=entry.place))
        what = f"the downloaded files of {entry.place}"
        found.uses.append(DiskUse(entry.place_option, Path(facts.folder), what, facts.size_bytes, facts.size_bytes))
    found.problems += _measured_later(report)
    found.uses += _pending_uses(report)
    return found


def _pending_uses(report: DatasetReport) -> Iterator[DiskUse]:
    """Files that a run fetches into folders of datasets: of each set once, whatever other sets it belongs to. Sizes are estimates."""
    reports = (*report.sets, *report.eval_sets)
    waiting = [pair for found in reports for pair in ((found.entry, found.pending), *found.pending_references)]
    for entry, pending in {entry.id: (entry, pending) for entry, pending in waiting}.values():
        for name, kind in entry.source.paths.items():
            if kind == "cache" and pending:
                what = f"the downloaded files of dataset {entry.id}"
                yield DiskUse(entry.option(name), Path(entry.own_fields[name]), what, pending.size_bytes)


def _measured_later(report: DatasetReport) -> Iterator[Problem]:
    for found in (*report.sets, *report.eval_sets):
        for entry in found.measured_later:
            message = f"dataset {entry.id}: {entry.place} is large. Its images are measured when the run starts."
            yield Problem.note(entry.place_option, "measured_at_start", message, got=entry.place)
