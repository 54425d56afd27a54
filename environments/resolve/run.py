"""Resolves an environment and a submitted form to everything that a run is started with. Uses no database.

Order of values: registry < family < environment < form. Paths become absolute, and every problem is reported.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from environments.files.adapter_file import OPTION as ADAPTER_OPTION
from environments.files.adapter_file import uses_lycoris
from environments.files.config_files import without_marks
from environments.files.datasets_file import OPTION, read_document
from environments.paths import Home, Kind, Origin, ResolvedPath, resolve
from environments.resolve.checks import flavour_mismatch
from environments.resolve.hooks import resolve_scripts
from environments.resolve.json_options import publishing_file, read_json_option
from environments.resolve.path_options import ADAPTERS, DATASET, LOCAL, WEIGHTS, is_repository, resolve_weights
from environments.resolve.validation_paths import resolve_adapter, resolve_validation_adapter, resolve_validation_inputs
from environments.secrets.datasets import revealed
from trainer_engine.config.adapters.validation_adapter import CONFIG as VALIDATION_ADAPTER
from trainer_engine.config.components import spec_of_run
from trainer_engine.config.datasets import Dataloader, parse_dataloader
from trainer_engine.config.families import find_spec
from trainer_engine.config.family_spec import FamilySpec
from trainer_engine.config.options import REGISTRY, TrainingOptions
from trainer_engine.config.parse import check_options, normalise
from trainer_engine.config.prompt_library import EXPECTED as LIBRARY_EXPECTED
from trainer_engine.config.prompt_library import OPTION as PROMPT_LIBRARY
from trainer_engine.config.publishing import OPTION as PUBLISHING
from trainer_engine.config.quantization_config import EXAMPLE
from trainer_engine.config.quantization_config import OPTION as QUANTISATION
from trainer_engine.config.resuming.choice import is_path
from trainer_engine.config.validation_inputs import OPTION as INPUTS
from trainer_engine.contract.errors import Problem, errors_in

RESUME = "resume_from_checkpoint"
CONTENTS = MappingProxyType({PROMPT_LIBRARY: LIBRARY_EXPECTED, QUANTISATION: EXAMPLE})
"""Option that holds JSON or the path of a JSON file -> what is expected. A run is started with the content."""


@dataclass(frozen=True)
class ResolvedRun:
    """What a run would be started with, and the problems with it."""

    options: TrainingOptions | None
    """Typed, defaults filled in, paths absolute; None if ``problems`` holds an error of an option."""
    values: dict[str, Any]
    """Every option by canonical name as in ``options``, prompt libraries as contents; only the given ones if ``options`` is None."""
    given: dict[str, Any]
    """The form laid over the environment, as ``config.json`` should hold it for this run, paths as written."""
    datasets: list[dict[str, Any]]
    """The usable entries of the dataloader file with defaults filled in, paths absolute."""
    dataloader: Dataloader | None
    """None if the file cannot be read."""
    dataloader_path: Path | None
    spec: FamilySpec | None
    problems: list[Problem]
    """Errors, warnings and notes."""
    found: dict[str, ResolvedPath] = field(default_factory=dict)
    """Option or dataset field -> the resolved path."""

    @property
    def errors(self) -> list[Problem]:
        return errors_in(self.problems)


def resolve_run(home: Home, environment_values: Mapping[str, Any], submitted: Mapping[str, Any]) -> ResolvedRun:
    """Lay the form over the environment and check everything that needs no images. Writes nothing."""
    stored, problems = normalise(without_marks(environment_values))
    sent, wrong = normalise(without_marks(submitted))
    overridden = set(sent)
    problems = [problem for problem in problems if problem.option not in overridden] + wrong
    given = {**stored, **sent}
    spec = find_spec(str(given.get("model_family", "")))
    if spec is not None:
        given["model_family"] = spec.name
    if uses_lycoris(given):
        given.setdefault(ADAPTER_OPTION, REGISTRY[ADAPTER_OPTION].default)
    reported = {problem.option for problem in problems}
    absolute, found, path_problems = _resolve_options(given, home)
    scripts, script_problems = resolve_scripts(given, home)
    absolute |= scripts
    path_problems += script_problems
    options, more = check_options(absolute)
    problems += [problem for problem in more if problem.option not in reported]
    reported |= {problem.option for problem in errors_in(more)}
    problems += [problem for problem in path_problems if problem.option not in reported]
    problems += flavour_mismatch(given)
    if errors_in(problems):
        options = None
    if spec is not None and options is not None:
        spec = spec_of_run(options.model, spec)
    dataloader, dataset_problems = _read_datasets(found.get(OPTION), options, absolute, home, found)
    problems += dataset_problems
    return ResolvedRun(
        options=options,
        values=options.as_values() if options else absolute,
        given=given,
        datasets=dataloader.as_document() if dataloader else [],
        dataloader=dataloader,
        dataloader_path=found[OPTION].path if OPTION in found else None,
        spec=spec,
        problems=problems + _origin_notes(found),
        found=found,
    )


def _resolve_options(given: Mapping[str, Any], home: Home) -> tuple[dict[str, Any], dict[str, ResolvedPath], list[Problem]]:
    """The values with absolute paths, the resolved paths, and the problems with the others."""
    absolute, taken, problems = dict(given), {}, []
    idle = set() if uses_lycoris(given) else {ADAPTER_OPTION}
    for name, rule in LOCAL.items():
        if given.get(name) is None or name in idle:
            continue
        found = resolve(given[name], name, home=home, must_exist=rule.must_exist, kind=rule.kind, writing=rule.writing)
        if isinstance(found, Problem):
            problems.append(found)
        else:
            taken[name], absolute[name] = found, str(found.path)
    for name, expected in CONTENTS.items():
        content = read_json_option(given[name], name, expected, home) if given.get(name) else None
        if isinstance(content, Problem):
            problems.append(content)
        elif content is not None:
            absolute[name] = content[0]
            taken |= {name: content[1]} if content[1] else {}
    validation_adapters = resolve_validation_adapter(given[VALIDATION_ADAPTER], home) if given.get(VALIDATION_ADAPTER) else None
    if validation_adapters is not None:
        absolute[VALIDATION_ADAPTER] = validation_adapters.text
        taken |= validation_adapters.taken
        problems += validation_adapters.problems
    if given.get(INPUTS):
        absolute[INPUTS], inputs, wrong = resolve_validation_inputs(given[INPUTS], home)
        taken |= inputs
        problems += wrong
    checkpoint = _resolve_checkpoint(given.get(RESUME), home)
    if isinstance(checkpoint, Problem):
        problems.append(checkpoint)
    elif checkpoint is not None:
        taken[RESUME], absolute[RESUME] = checkpoint, str(checkpoint.path)
    file = publishing_file(given.get(PUBLISHING), home)
    if isinstance(file, ResolvedPath):
        taken[PUBLISHING], absolute[PUBLISHING] = file, str(file.path)
    for name in (*WEIGHTS, *ADAPTERS):
        weights = (resolve_adapter if name in ADAPTERS else _resolve_weights)(given.get(name), name, home)
        if isinstance(weights, Problem):
            problems.append(weights)
        elif weights is not None:
            taken[name], absolute[name] = weights, str(weights.path)
    return absolute, taken, problems


def _resolve_weights(text: str | None, name: str, home: Home) -> ResolvedPath | Problem | None:
    """A local folder or file of weights; None if the text is a repository id and no folder."""
    if not text:
        return None
    if not is_repository(text):
        return resolve_weights(text, name, home, must_exist=True)
    found = resolve_weights(text, name, home)
    return found if isinstance(found, Problem) or found.exists else None


def _resolve_checkpoint(text: Any, home: Home) -> ResolvedPath | Problem | None:
    """A checkpoint that is given by its path; None for names and addresses."""
    if not isinstance(text, str) or not is_path(text):
        return None
    return resolve(text, RESUME, home=home, must_exist=True, kind=Kind.FOLDER)


def _read_datasets(
    file: ResolvedPath | None, options: TrainingOptions | None, values: Mapping[str, Any], home: Home, taken: dict[str, ResolvedPath]
) -> tuple[Dataloader | None, list[Problem]]:
    """The datasets with absolute paths (None if the file cannot be read), and their problems."""
    if file is None:
        return None, []
    document, problems = read_document(file, home)
    if problems:
        return None, problems
    return parse_datasets(document, file.path, options or values, home, taken)


def parse_datasets(
    document: Any, file: Path, options: TrainingOptions | Mapping[str, Any], home: Home, taken: dict[str, ResolvedPath]
) -> tuple[Dataloader, list[Problem]]:
    """The datasets of the document of ``file`` with absolute paths, and their problems. ``taken`` receives the paths that were resolved.

    ``options`` are those of the run, or their values if they are not valid.
    """
    document = revealed(document, file, home)

    def locate(text: str, option: str, field_name: str) -> str | Problem:
        rule = DATASET[field_name]
        may_be_missing = rule.or_repository and is_repository(text)
        path = resolve(text, option, home=home, must_exist=rule.must_exist and not may_be_missing, kind=rule.kind, writing=rule.writing)
        if may_be_missing and isinstance(path, ResolvedPath) and not path.exists:
            return text
        if isinstance(path, Problem):
            return path
        taken[option] = path
        return str(path.path)

    return parse_dataloader(document, options, locate=locate)


def _origin_notes(found: Mapping[str, ResolvedPath]) -> list[Problem]:
    """Notes about relative paths whose resolution may surprise."""
    notes = []
    for name, path in found.items():
        if path.exists and path.origin is Origin.CONFIG or (name in WEIGHTS and path.origin is Origin.HOME):
            notes.append(Problem.note(name, "path_taken", f"{path.given} was found at {path.path}.", got=path.given))
    return notes
