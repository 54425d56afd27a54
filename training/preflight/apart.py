"""Checks runs with large datasets, tables, clips or remote sources in a process of its own, with limits.

The server answers others meanwhile, and is no larger afterwards. Libraries in C, such as FFmpeg, read files of users there and not in the
server. ``python -m training.preflight.apart`` reads a request from its standard input and writes the answer to its standard output.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Collection, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from environments.limited_process import LIMITS, MEMORY_EXIT, Limits, ProcessFailed, answer_of, apply_limits
from environments.paths import Home
from environments.resolve.run import ResolvedRun
from environments.resolve.webhook_targets import load_webhooks
from trainer_engine.config.dataset_tables import FOLDER_FIELD, caption_specs
from trainer_engine.config.datasets import Dataloader, ImageSet, ReferenceSet, parse_dataloader
from trainer_engine.config.families import find_spec
from trainer_engine.config.parse import parse_options
from trainer_engine.contract.errors import Level, Problem
from training.preflight.run import examine_run
from training.preflight.summary import PreflightReport
from training.webhooks.egress import RunRules, run_rules

MODULE = "training.preflight.apart"
LARGE = 5_000
"""Directory entries of a dataset from which on a process of its own is worth the half second that it takes to start."""
PLAIN_FIELDS = ("any_script", "no_script", "script_variables", "any_place")
NICENESS = 5


def examine_run_apart(
    resolved: ResolvedRun, home: Home, waits_for: Collection[str] = frozenset(), limits: Limits = LIMITS
) -> PreflightReport:
    """Run all checks like ``examine_run``, in another process if a dataset is large or takes more than opening images."""
    options, dataloader = resolved.options, resolved.dataloader
    if options is None or dataloader is None or not any(map(needs_a_process, _file_sets(dataloader))):
        return examine_run(resolved, home, waits_for=waits_for)
    request = {
        "home": {one.name: _plain(getattr(home, one.name)) for one in fields(Home)},
        "values": resolved.values,
        "given": resolved.given,
        "datasets": dataloader.as_document(),
        "positions": [entry.position for entry in _entries(dataloader)],
        "waits_for": sorted(waits_for),
        "rules": run_rules().as_dict(),
    }
    targets, _ = load_webhooks(options.hooks.webhook_config, home)
    try:
        answer = json.loads(answer_of(MODULE, json.dumps(request).encode("ascii"), limits))
    except ProcessFailed as failure:
        message = f"The process that examined the datasets {failure}."
        problem = Problem.error("dataloader", "not_examined", message, hint=failure.hint)
        return PreflightReport(resolved, [*resolved.problems, problem], webhooks=tuple(targets))
    problems = [Problem(**{**one, "level": Level(one["level"])}) for one in answer["problems"]]
    return PreflightReport(resolved, [*resolved.problems, *problems], answer["understood"], tuple(targets))


def needs_a_process(entry: ImageSet | ReferenceSet) -> bool:
    """Whether examining a set takes long, or libraries that parse more than images: tables, videos, what other machines send."""
    if entry.source.place_field != FOLDER_FIELD or entry.parquet is not None:
        return True
    if isinstance(entry, ImageSet) and (entry.video is not None or caption_specs()[entry.caption_strategy].paths):
        return True
    return is_large(entry.instance_data_dir)


def is_large(folder: str) -> bool:
    """Whether a folder and its subfolders have so many entries. It stops counting there."""
    count = 0
    for _, folders, files in os.walk(folder) if folder else ():
        count += len(folders) + len(files)
        if count >= LARGE:
            return True
    return False


def answer(request: Mapping[str, Any]) -> dict[str, Any]:
    """Examines the run of a request."""
    options = parse_options(request["values"])
    parsed, _ = parse_dataloader(request["datasets"], options)
    resolved = ResolvedRun(
        options=options,
        values=request["values"],
        given=request["given"],
        datasets=request["datasets"],
        dataloader=_at(parsed, request["positions"]),
        dataloader_path=None,
        spec=find_spec(options.model.model_family),
        problems=[],
    )
    report = examine_run(resolved, home_of(request["home"]), waits_for=request["waits_for"], rules=RunRules.from_dict(request["rules"]))
    problems = [{**problem.as_dict(), "level": problem.level.value} for problem in report.problems]
    return {"problems": problems, "understood": report.understood}


def home_of(values: Mapping[str, Any]) -> Home:
    """Returns the home that a request describes."""
    found: dict[str, Any] = {name: value if name in PLAIN_FIELDS else _paths(value) for name, value in values.items()}
    return Home(**{**found, "script_variables": tuple(values["script_variables"])})


def _paths(value: str | list[str]) -> Path | tuple[Path, ...]:
    return Path(value) if isinstance(value, str) else tuple(map(Path, value))


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [str(one) for one in value]
    return str(value) if isinstance(value, Path) else value


def _file_sets(dataloader: Dataloader) -> tuple[ImageSet | ReferenceSet, ...]:
    return (*dataloader.sets_of_images, *dataloader.reference_sets)


def _entries(dataloader: Dataloader) -> list[Any]:
    entries = (*_file_sets(dataloader), *dataloader.text_sets)
    return sorted(entries, key=lambda entry: entry.position)


def _at(dataloader: Dataloader, positions: list[int]) -> Dataloader:
    """Returns the datasets with the positions in the user's file, by which problems name them."""
    old = [entry.position for entry in _entries(dataloader)]
    moved = dict(zip(old, positions, strict=True))
    names = ("image_sets", "text_sets", "reference_sets", "eval_sets")
    changed = {name: tuple(one.model_copy(update={"position": moved[one.position]}) for one in getattr(dataloader, name)) for name in names}
    return replace(dataloader, **changed)


def main() -> None:
    """Answers one request."""
    apply_limits(sys.argv[1:])
    os.nice(NICENESS)
    try:
        request = json.load(sys.stdin)
        with os.fdopen(os.dup(1), "w", encoding="ascii") as stream:
            os.dup2(2, 1)  # what a library prints is no part of the answer
            json.dump(answer(request), stream)
    except MemoryError:
        os._exit(MEMORY_EXIT)


if __name__ == "__main__":
    main()
