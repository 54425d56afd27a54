"""All changes of environments. Each is one transaction over the row, its revision and its files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from environments.create.names import name_for_run, name_problem
from environments.create.plan import NewEnvironment, PlannedEnvironment, plan
from environments.create.starter import starter_datasets
from environments.errors import EnvironmentExists, EnvironmentInUse, EnvironmentNotFound, EnvironmentProblems
from environments.files.adapter_file import OPTION as ADAPTER_OPTION
from environments.files.adapter_file import find_adapter_file, uses_lycoris
from environments.files.config_files import (
    CONFIG_FILE,
    DATASETS_FILE,
    LYCORIS_FILE,
    folder_of,
    keep_copy,
    read_config,
    remove_files,
    without_marks,
    write_config,
    write_text,
)
from environments.files.datasets_file import OPTION, destination, locate, read_document
from environments.files.json_text import write_json
from environments.files.own_files import replace_problem, write_own_text
from environments.home import current_home
from environments.imports.checking import Imported
from environments.models import Action, Environment
from environments.paths import Home
from environments.resolve.changes import RunRecord, changes, to_store
from environments.resolve.checks import CheckedConfig, check_config
from environments.resolve.run import parse_datasets, resolve_run
from environments.secrets import store
from environments.secrets.datasets import of_file
from environments.secrets.store import holds_the_same, with_secrets
from environments.seen import SEEN_NOTHING, Seen, refuse_changed
from environments.sync import (
    datasets_text,
    names_taken,
    newest_revision,
    own_datasets_file,
    record,
    remember_files,
    sync_all_from_disk,
    sync_from_disk,
)
from environments.writing import change, locked, new_row, record_datasets, write_datasets, write_own, write_row
from trainer_engine.config.families import find_spec
from trainer_engine.config.lycoris.config_file import parse_lycoris
from trainer_engine.config.options.secrets import hidden_problems
from trainer_engine.contract.errors import Problem, errors_in

NOT_FOUND = "not_found"
"""Code of the problem of a path that does not exist, which may be made before a run starts."""


@dataclass(frozen=True)
class Regenerated:
    """A generated datasets file."""

    environment: Environment
    path: Path
    previous: Path | None
    """The copy of the old file; None if there was none."""


def find_all() -> list[Environment]:
    """Every environment, synchronised with its files."""
    return sync_all_from_disk(current_home())


def find(name: str) -> Environment:
    """One environment, synchronised with its files. Raises EnvironmentNotFound."""
    environment = sync_from_disk(name, current_home())
    if environment is None:
        raise EnvironmentNotFound(name)
    return environment


def active() -> Environment | None:
    """The environment that runs start from, or None."""
    name = Environment.objects.filter(is_active=True).values_list("name", flat=True).first()
    return sync_from_disk(name, current_home()) if name else None


def create_environment(request: NewEnvironment, *, actor: str) -> Environment:
    """Create an environment with its files. Raises EnvironmentProblems, EnvironmentExists, FilesNotWritable."""
    planned = plan(request, current_home())
    if isinstance(planned, list):
        raise EnvironmentProblems.of(planned)
    return _create(request.name, request.description, planned, actor)


def import_environment(imported: Imported, *, actor: str) -> Environment:
    """Create an environment from a foreign configuration. Raises EnvironmentProblems, EnvironmentExists, FilesNotWritable.

    A file that lies in the environment's folder already is an error: nothing is replaced, and nothing that is there is taken for imported.
    """
    home, planned = current_home(), imported.planned
    given = ((planned.datasets_path, planned.datasets), (folder_of(home, imported.name) / LYCORIS_FILE, planned.adapter))
    there = [path for path, document in given if path is not None and document is not None and path.exists()]
    if there and sync_from_disk(imported.name, home) is None:
        names = ", ".join(path.name for path in there)
        message = f"config/{imported.name} holds {names} already."
        raise EnvironmentProblems.of([Problem.error("name", "exists", message, got=imported.name, hint="choose another name")])
    return _create(imported.name, f"Imported from {imported.format}.", planned, actor)


def _create(name: str, description: str, planned: PlannedEnvironment, actor: str) -> Environment:
    if sync_from_disk(name, current_home()) is not None:
        raise EnvironmentExists(name)
    with change() as home:
        environment = new_row(name, description=description, config=planned.config)
        _write_first_files(environment, planned, home)
        remember_files(environment, home)
        environment.save()
        record(environment, Action.CREATED, actor, home)
    return environment


def _write_first_files(environment: Environment, planned: PlannedEnvironment, home: Home) -> None:
    write_config(home, environment.name, planned.config)
    path = planned.datasets_path
    if planned.adapter is not None:
        write_text(home, folder_of(home, environment.name) / LYCORIS_FILE, write_json(planned.adapter))
    if planned.datasets is not None and path is not None and not path.exists():
        write_own_text(path, write_json(planned.datasets), home=home, is_new=True)


def update_environment(
    name: str,
    *,
    config: Mapping[str, Any],
    actor: str,
    description: str | None = None,
    tags: Sequence[str] | None = None,
    datasets: str | None = None,
    seen: Seen = SEEN_NOTHING,
) -> tuple[Environment, CheckedConfig]:
    """Replace the configuration; None keeps the description, the tags or the datasets file.

    Raises EnvironmentNotFound, EnvironmentProblems, FilesNotWritable, and EnvironmentChanged if it is not what was ``seen`` any more.
    """
    refuse_changed(find(name), seen, current_home())
    checked = check_config(with_secrets(current_home(), name, without_marks(config)), current_home())
    if errors := checked.errors + hidden_problems(checked.values):
        raise EnvironmentProblems.of(errors)
    with change() as home:
        row = locked(name)
        refuse_changed(row, seen, home)
        if description is not None:
            row.description = description
        if tags is not None:
            row.tags = list(tags)
        if datasets is not None:
            write_datasets(row, checked.values, datasets, home)
        write_row(row, checked.values, Action.UPDATED, actor, home)
    return row, checked


def dataset_problems(environment: Environment, document: object = None) -> list[Problem]:
    """The problems of the datasets file of an environment, or of a document that is to replace it."""
    home = current_home()
    run = resolve_run(home, with_secrets(home, environment.name, environment.config), {})
    found = run.found.get(OPTION)
    if document is None:
        if found is None:
            return [problem for problem in run.problems if problem.option == OPTION]
        document, problems = read_document(found, home)
        if problems:
            return problems
    path = found.path if found is not None else folder_of(home, environment.name) / DATASETS_FILE
    return parse_datasets(document, path, run.options or run.values, home, {})[1]


def write_datasets_file(name: str, document: object, *, actor: str, seen: Seen = SEEN_NOTHING) -> Environment:
    """Replace the datasets file of an environment. Folders that do not exist yet are no reason against it.

    Raises EnvironmentNotFound, EnvironmentProblems, FilesNotWritable, and EnvironmentChanged if it is not what was ``seen`` any more.
    """
    environment = find(name)
    refuse_changed(environment, seen, current_home())
    wrong = [problem for problem in errors_in(dataset_problems(environment, document or [])) if problem.code != NOT_FOUND]
    if wrong:
        raise EnvironmentProblems.of(wrong)
    with change() as home:
        row = locked(name)
        refuse_changed(row, seen, home)
        given = row.config.get(OPTION) or f"{name}/{DATASETS_FILE}"
        write_datasets(row, {**row.config, OPTION: given}, write_json(document), home)
        record_datasets(row, given, Action.DATASETS_EDITED, actor, home)
    return row


def create_from_values(
    name: str, config: Mapping[str, Any], *, actor: str, description: str = "", tags: Sequence[str] = ()
) -> tuple[Environment, CheckedConfig]:
    """Create an environment with a given configuration. A datasets file that it names may exist already.

    Raises EnvironmentProblems, EnvironmentExists, FilesNotWritable.
    """
    wrong = name_problem(name)
    checked = check_config(without_marks(config), current_home())
    if errors := [*([wrong] if wrong else []), *checked.errors, *hidden_problems(checked.values)]:
        raise EnvironmentProblems.of(errors)
    if sync_from_disk(name, current_home()) is not None:
        raise EnvironmentExists(name)
    with change() as home:
        row = new_row(name, description=description, tags=list(tags))
        write_row(row, checked.values, Action.CREATED, actor, home)
    return row, checked


@dataclass(frozen=True)
class WrittenAdapter:
    """An adapter file that was stored."""

    environment: Environment
    path: Path


def write_adapter_file(name: str, document: object, *, actor: str, seen: Seen = SEEN_NOTHING) -> WrittenAdapter:
    """Replace the adapter file of an environment and set the option that names it.

    Raises EnvironmentNotFound, EnvironmentProblems, FilesNotWritable, and EnvironmentChanged if it is not what was ``seen`` any more.
    """
    environment = find(name)
    refuse_changed(environment, seen, current_home())
    if not uses_lycoris(environment.config):
        message, hint = f"The environment {name!r} trains no LyCORIS adapter.", "PUT model_type=lora and lora_type=lycoris first"
        raise EnvironmentProblems.of(
            [Problem.error("lora_type", "no_lycoris", message, got=environment.config.get("lora_type"), hint=hint)]
        )
    _, problems = parse_lycoris(document, find_spec(str(environment.config.get("model_family"))))
    if errors_in(problems):
        raise EnvironmentProblems.of(errors_in(problems))
    found = find_adapter_file(environment.config, name, current_home())
    if found.problem is not None and found.problem.code not in ("unreadable_file",):
        raise EnvironmentProblems.of([found.problem])
    with change() as home:
        row = locked(name)
        refuse_changed(row, seen, home)
        write_own(found.path, ADAPTER_OPTION, write_json(document), name, LYCORIS_FILE, home)
        write_row(row, {**row.config, ADAPTER_OPTION: found.given}, Action.UPDATED, actor, home)
    return WrittenAdapter(row, found.path)


def activate(name: str, *, actor: str) -> Environment:
    """Make it the environment that runs start from. Raises EnvironmentNotFound."""
    find(name)
    with change() as home:
        list(Environment.objects.select_for_update().order_by("pk").values_list("pk"))  # one activation at a time
        row = locked(name)
        Environment.objects.filter(is_active=True).exclude(name=name).update(is_active=False)
        if Environment.objects.filter(name=name, is_active=False).update(is_active=True):
            row.refresh_from_db()
            record(row, Action.ACTIVATED, actor, home)
    return row


def delete_environment(name: str, *, actor: str) -> None:
    """Remove row and files; the revisions stay. Raises EnvironmentNotFound, EnvironmentInUse, FilesNotWritable."""
    if find(name).is_active:
        raise EnvironmentInUse(name)
    with change() as home:
        row = locked(name)
        if row.is_active:
            raise EnvironmentInUse(name)
        broken = read_config(home, name).file.text if row.file_problems else None
        record(row, Action.DELETED, actor, home, replaced_text=broken)
        row.delete()
        store.forget(home, store.of_environment(name))
        store.forget(home, of_file(own_datasets_file(name, home)))
        remove_files(home, name, CONFIG_FILE, *([LYCORIS_FILE] if uses_lycoris(row.config) else []), *_own_datasets_file(row, home))


def _own_datasets_file(row: Environment, home: Home) -> list[str]:
    """The name of the datasets file if it is the environment's own and the revision holds its text."""
    file = datasets_text(row.config, home)
    return [DATASETS_FILE] if file and file.text is not None and file.path == own_datasets_file(row.name, home) else []


def regenerate_dataloader(name: str, *, actor: str, path: str | None = None, include_defaults: bool = True) -> Regenerated:
    """Generate the datasets file, at ``path`` if given. A copy of the old file is kept next to it.

    Raises EnvironmentNotFound, EnvironmentProblems, FilesNotWritable.
    """
    given = path or find(name).config.get(OPTION) or f"{name}/{DATASETS_FILE}"
    target = destination(given, "path" if path else OPTION, current_home())
    if isinstance(target, Problem):
        raise EnvironmentProblems.of([target])
    find(name)
    with change() as home:
        row = locked(name)
        text = write_json(starter_datasets(name, row.config, include_defaults=include_defaults))
        may_edit = target == locate(row.config, home).path
        problem = replace_problem(target, "path" if path else OPTION, name=name, usual=DATASETS_FILE, home=home, may_edit=may_edit)
        if problem is not None:
            raise EnvironmentProblems.of([problem])
        previous = keep_copy(target)
        write_own_text(target, text, home=home, is_new=previous is None)
        record_datasets(row, given, Action.DATASETS_REGENERATED, actor, home)
    return Regenerated(row, target, previous)


def record_run_config(name: str | None, values: Mapping[str, Any]) -> RunRecord:
    """Write the configuration of a run into its environment, or into a new one for a run without an environment.

    ``values`` are the checked values of the form laid over the environment. Raises EnvironmentNotFound, FilesNotWritable.
    """
    if name is not None:
        find(name)
    with change() as home:
        if name is None:
            return RunRecord(_environment_for_run(to_store(values, {}), home))
        row = locked(name)
        stored = to_store(values, row.config)
        if holds_the_same(home, name, row.config, stored) and not row.file_problems:
            return RunRecord(row)
        secrets = store.read(home, store.of_environment(name))
        changed, revision = changes(row.config, secrets, stored), newest_revision(name)
        write_row(row, stored, Action.STARTED, "run", home)
        return RunRecord(row, changed, revision)


def _environment_for_run(values: dict[str, Any], home: Home) -> Environment:
    description = "Made for a run that was started without an environment of its base model."
    same = [row for row in Environment.objects.filter(description=description) if holds_the_same(home, row.name, row.config, values)]
    if same:
        return same[0]
    row = Environment.objects.create(name=name_for_run(values, names_taken(home)), description=description)
    write_row(row, values, Action.STARTED, "run", home)
    return row
