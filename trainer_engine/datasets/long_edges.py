"""Images that a network has no positions for, among those that a run trains on, evaluates on and generates."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from trainer_engine.config.family_spec import FamilySpec
from trainer_engine.config.options import TrainingOptions
from trainer_engine.config.positions import long_edges
from trainer_engine.config.rules.distributed import validation_sizes
from trainer_engine.config.token_splitting import SizeInUse
from trainer_engine.contract.errors import Problem
from trainer_engine.datasets.findings import sizes_in_use
from trainer_engine.datasets.report import DatasetReport, SetReport

ANY_SIZE = (1024, 1024)
"""Of a file: what an aspect is trained as does not depend on it."""


def beyond_positions(options: TrainingOptions, spec: FamilySpec, report: DatasetReport, config: Mapping[str, Any]) -> Iterator[Problem]:
    """Yields an error for each option with sizes beyond the network's positions. ``config``: the network's; empty if it is not known."""
    if spec.positions is None:
        return
    sets = [*report.sets, *report.eval_sets]
    sizes = [*validation_sizes(options), *sizes_in_use(sets), *(size for found in sets for size in _of_later_epochs(found))]
    tokens = spec.positions.along_an_edge(options.model.model_flavour or spec.default_flavour, config)
    yield from long_edges(spec.title, tokens * spec.sampling.multiple_px, sizes)


def _of_later_epochs(found: SetReport) -> Iterator[SizeInUse]:
    """The sizes of all aspects of a set whose images get new ones in each epoch."""
    if found.entry.changes_aspects and found.fitter is not None:
        for choice in found.entry.crop_aspect_buckets:
            size = found.fitter.fit_aspect(ANY_SIZE, choice.aspect).target
            yield SizeInUse(found.entry.option("resolution"), f"aspect {choice.aspect:g}", size)
