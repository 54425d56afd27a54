"""Checks a translated configuration. What this trainer refuses is left out by name, with the words of its own checks."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from environments.create.names import name_problem
from environments.create.plan import PlannedEnvironment
from environments.create.starter import plain, starter_datasets
from environments.files.adapter_file import uses_lycoris
from environments.files.config_files import DATASETS_FILE
from environments.files.datasets_file import OPTION, destination
from environments.imports.documents import ImportRefused
from environments.imports.draft import Draft
from environments.imports.ledger import LeftOut, printable, shown
from environments.paths import Home
from environments.resolve.checks import CheckedConfig, check_config
from trainer_engine.config.compatibility import reason_of
from trainer_engine.config.datasets import parse_dataloader
from trainer_engine.config.lycoris.config_file import parse_lycoris
from trainer_engine.contract.errors import Problem, errors_in

ESSENTIAL = frozenset(["model_family", "model_type", OPTION])
"""Options without which there is no environment."""
IDENTIFYING = frozenset(["id", "type", "dataset_type", "instance_data_dir", "conditioning_type"])
"""Fields without which an entry is another one: it is left out with them."""
MOST_ROUNDS = 30
IN_DATALOADER = re.compile(r"dataloader\[(\d+)\](?:\.([A-Za-z_]+))?")


@dataclass(frozen=True)
class Taken:
    """One option of the environment and where it comes from."""

    name: str
    """Path in the foreign document."""
    option: str
    value: str


@dataclass(frozen=True)
class Imported:
    """An environment that can be created, and what the documents have beyond it."""

    name: str
    format: str
    planned: PlannedEnvironment
    taken: tuple[Taken, ...]
    left_out: tuple[LeftOut, ...]
    notes: tuple[str, ...]
    """Warnings and suggestions about the configuration."""


def check_draft(draft: Draft, home: Home, format_name: str) -> Imported:
    """The environment without everything that this trainer refuses. Raises ImportRefused if too little is left."""
    if problem := name_problem(draft.name):
        raise ImportRefused([problem])
    _check_model(draft)
    kept_path = draft.options.get(OPTION) if not draft.datasets else None
    draft.options[OPTION] = kept_path or f"{draft.name}/{DATASETS_FILE}"
    draft.options.setdefault("output_dir", f"output/{draft.name}")
    checked = _check_options(draft, home)
    path = destination(str(checked.values[OPTION]), OPTION, home)
    if isinstance(path, Problem):
        raise ImportRefused([path])
    _check_datasets(draft, checked, is_elsewhere=kept_path is not None)
    adapter = _checked_adapter(draft) if uses_lycoris(checked.values) else None
    planned = PlannedEnvironment(checked.values, draft.datasets or None, path, adapter)
    taken = tuple(
        Taken(printable(draft.origins[option]), option, shown(option, value))
        for option, value in checked.values.items()
        if option in draft.origins
    )
    return Imported(draft.name, format_name, planned, taken, draft.ledger.report, (*checked.warnings, *checked.suggestions))


def _check_model(draft: Draft) -> None:
    if "model_family" not in draft.options:
        message = "The file names no model that is recognised: neither its architecture nor its weights."
        hint = "name the family with --family, or as model_family"
        got = draft.options.get("pretrained_model_name_or_path", "")
        raise ImportRefused([Problem.error("model_family", "missing", message, got=shown("model", got), hint=hint)])


def _check_options(draft: Draft, home: Home) -> CheckedConfig:
    """Leaves out options until no check has an error. Raises ImportRefused for what cannot be left out."""
    for _ in range(MOST_ROUNDS):
        checked = check_config(draft.options, home)
        if not checked.errors:
            return checked
        dropped = False
        for problem in checked.errors:
            option = re.split(r"[.\[]", problem.option, maxsplit=1)[0]
            if option in draft.options and option not in ESSENTIAL:
                value = draft.options.pop(option)
                draft.ledger.refuse(draft.origins.get(option, option), value, _because(problem))
                dropped = True
        draft.options.setdefault("output_dir", f"output/{draft.name}")
        if not dropped:
            break
    raise ImportRefused(checked.errors)


def _because(problem: Problem) -> str:
    """The reason for the report, of the kind that ``simpletuner check`` names."""
    hint = f"; {problem.hint}" if problem.hint else ""
    return f"{reason_of(problem)}: {problem.message.rstrip('.')}{hint}"


def _check_datasets(draft: Draft, checked: CheckedConfig, *, is_elsewhere: bool) -> None:
    """Leaves out fields and entries until no check has an error. Without an image set the environment gets those of a new one."""
    for _ in range(MOST_ROUNDS):
        if is_elsewhere or not draft.has_images:
            break
        errors = errors_in(parse_dataloader(draft.datasets, checked.values)[1])
        if not errors:
            return
        if not _drop(draft, errors):
            raise ImportRefused(errors)
    if not is_elsewhere:
        draft.datasets = starter_datasets(draft.name, checked.values)
        folder = draft.datasets[0]["instance_data_dir"]
        draft.ledger.refuse("datasets", "none", f"no dataset could be taken; {DATASETS_FILE} begins with the folder {folder}")


def _drop(draft: Draft, errors: list[Problem]) -> bool:
    """Removes what the errors name, and says whether anything was removed."""
    entries: dict[int, Problem] = {}
    dropped = False
    for problem in errors:
        found = IN_DATALOADER.match(problem.option)
        if found is None or int(found[1]) >= len(draft.datasets):
            continue
        entry, field = draft.datasets[int(found[1])], found[2]
        if field is None or field in IDENTIFYING:
            entries[int(found[1])] = problem
        elif field in entry:
            draft.ledger.refuse(f"{DATASETS_FILE}: {entry.get('id')}.{field}", entry.pop(field), _because(problem))
            dropped = True
    for number in sorted(entries, reverse=True):
        entry = draft.datasets.pop(number)
        draft.ledger.refuse(f"{DATASETS_FILE}: {entry.get('id')}", entry, _because(entries[number]))
        _forget_partner(draft, str(entry.get("id")))
    return dropped or bool(entries)


def _forget_partner(draft: Draft, removed: str) -> None:
    for entry in draft.datasets:
        partners = entry.get("conditioning_data")
        if isinstance(partners, list) and removed in partners:
            entry["conditioning_data"] = [one for one in partners if one != removed]
            if not entry["conditioning_data"]:
                del entry["conditioning_data"]


def _checked_adapter(draft: Draft) -> dict[str, Any]:
    """The adapter file without keys that are refused; the family's own one if it cannot be used at all."""
    start: dict[str, Any] = plain(draft.spec.adapters.lycoris_start) if draft.spec else {}
    document = draft.adapter
    for _ in range(MOST_ROUNDS):
        if document is None:
            return start
        errors = errors_in(parse_lycoris(document, draft.spec)[1])
        if not errors:
            return document
        keys = [problem.option.partition(".")[2].split(".")[0].split("[")[0] for problem in errors]
        known = [(key, problem) for key, problem in zip(keys, errors, strict=True) if key in document and key != "algo"]
        if not known:
            draft.ledger.refuse("lycoris_config.json", document, f"{_because(errors[0])}. The family's own adapter file takes its place")
            return start
        for key, problem in known:
            if key in document:
                draft.ledger.refuse(f"lycoris_config.json: {key}", document.pop(key), _because(problem))
        if "apply_preset" not in document and "apply_preset" in start:
            document["apply_preset"] = {"target_module": start["apply_preset"]["target_module"]}
    return start
