"""``simpletuner plan``: prints the samples of each step, with the engine's own code and without torch."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from environments.resolve.run import ResolvedRun
from simpletuner_site.environment import BadEnvironment
from simpletuner_site.train.command import UnreadableConfig, open_config
from simpletuner_site.train.report import print_problem
from trainer_engine.batches.sampler import Item, Sampler
from trainer_engine.batches.sources import data_source, make_sampler, trained_sets
from trainer_engine.config.addresses import Reach
from trainer_engine.contract.errors import ExitCode, Problem, errors_in
from trainer_engine.datasets.examine import examine
from trainer_engine.datasets.report import DatasetReport
from trainer_engine.datasets.schedule import run_steps
from trainer_engine.datasets.sources.base import printable
from training.engine.command_line import process_count


class NothingToPlan(Exception):
    """The configuration or its datasets are invalid; ``problems`` says why."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("nothing to plan")
        self.problems = problems


def plan(config: Path, steps: int | None = None, *, as_json: bool = False, home: Path | None = None) -> int:
    """Print the samples of the first ``steps`` steps, or of one epoch. Returns 0, or 20 if the configuration is refused."""
    console = Console(stderr=True)
    try:
        _, resolved = open_config(config, home)
        sampler = sampler_of(resolved)
    except (UnreadableConfig, BadEnvironment) as error:
        console.print(f"[red]✗[/] {escape(str(error))}", highlight=False)
        return ExitCode.CONFIGURATION
    except NothingToPlan as refused:
        for problem in refused.problems:
            print_problem(console, problem)
        return ExitCode.CONFIGURATION
    options = resolved.options
    assert options is not None
    total = run_steps(options, sampler.timeline)
    wanted = steps or sampler.steps_per_epoch
    if wanted > total:
        console.print(f"[blue]·[/] the run ends after step {total}; later steps are those of a longer run", highlight=False)
    return _print(lines(sampler, wanted, as_json=as_json))


def sampler_of(resolved: ResolvedRun) -> Sampler:
    """The sampler of the run, assuming that every image can be decoded. Raises NothingToPlan."""
    options, spec, dataloader = resolved.options, resolved.spec, resolved.dataloader
    if options is None or spec is None or dataloader is None or resolved.errors:
        raise NothingToPlan(resolved.errors)
    processes = process_count(options)
    report = examine(dataloader, options, spec, processes=processes, reach=Reach(private=True))
    sources = [data_source(found, found.samples) for found in trained_sets(report)]
    problems = [*errors_in(report.problems), *_pending(report)]
    if not problems and not any(source.samples for source in sources):
        problems = [Problem.error("dataloader", "no_samples", "No image of any dataset can be trained on.")]
    if problems:
        raise NothingToPlan(problems)
    return make_sampler(sources, options, options.distributed.groups_of(processes))


def _pending(report: DatasetReport) -> Iterator[Problem]:
    """Yields an error for each set with files that a run fetches first: the order of samples depends on them."""
    for found in trained_sets(report):
        if found.pending:
            count, entry = found.pending.files, found.entry
            message = f"dataset {entry.id}: {count} files are not here yet; a run fetches them, then orders its samples."
            yield Problem.error(entry.place_option, "files_pending", message, got=count, hint="start the run once")


def lines(sampler: Sampler, steps: int, *, as_json: bool) -> Iterator[str]:
    """One line per step, from 1, with the samples in order over all micro-batches and processes."""
    for step in range(steps):
        items = [item for batch in sampler.step(step) for item in batch]
        yield _as_json(step + 1, items) if as_json else f"{step + 1}: {_as_text(items)}"


def _as_json(step: int, items: list[Item]) -> str:
    samples = [{"dataset": item.source, "file": printable(item.sample.name), "bucket": item.sample.bucket} for item in items]
    return json.dumps({"step": step, "samples": samples})


def _as_text(items: list[Item]) -> str:
    grouped = groupby(items, lambda item: (item.source, item.sample.bucket))
    return "; ".join(f"{source} [{bucket}]: {', '.join(_name(item) for item in group)}" for (source, bucket), group in grouped)


def _name(item: Item) -> str:
    """The file name, escaped if it would not fit on one line."""
    name = printable(item.sample.name)
    return name if name.isprintable() else json.dumps(name, ensure_ascii=False)


def _print(found: Iterator[str]) -> int:
    """Print the lines. Returns 0, also if the reader (``head``) closes the pipe."""
    try:
        for line in found:
            sys.stdout.write(f"{line}\n")
        sys.stdout.flush()
    except BrokenPipeError:
        # Python flushes standard output once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return ExitCode.COMPLETED
