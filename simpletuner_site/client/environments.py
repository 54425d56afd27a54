"""``simpletuner env``: lists, shows, creates, edits, activates, copies and exports environments."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from environments.moments import moment_text
from simpletuner_site.client.connection import Api, Refused, part
from simpletuner_site.client.output import print_json, print_line, print_report, print_table
from simpletuner_site.environment import read_command_environment
from trainer_engine.contract.files import read_small_text

CREATE_FIELDS = ("model_family", "model_flavour", "model_type", "lora_type", "description", "example")


def list_environments(api: Api, arguments: argparse.Namespace) -> int:
    found = api.get("/api/configs")
    if arguments.json:
        print_json(found)
        return 0
    columns = ("", "name", "family", "flavour", "type", "changed")
    rows = [
        (
            "*" if row["name"] == found["active"] else "",
            row["name"],
            row["model_family"],
            row["model_flavour"],
            _kind(row),
            moment_text(row["modified_at"]),
        )
        for row in found["configs"]
    ]
    print_table(columns, rows, empty="There are no environments. `simpletuner env create NAME --family FAMILY` makes one.")
    return 0


def _kind(row: dict[str, Any]) -> str:
    return f"lora ({row['lora_type']})" if row["lora_type"] and row["model_type"] == "lora" else str(row["model_type"] or "")


def show_environment(api: Api, arguments: argparse.Namespace) -> int:
    name = arguments.name or _active(api)
    found = api.get(f"/api/configs/{part(name)}")
    if arguments.json:
        print_json(found)
        return 0
    print_line(f"{name}: {found['metadata']['description'] or 'no description'}", sign="[bold]·[/]")
    print_table(("option", "value"), [(key, json.dumps(value, ensure_ascii=False)) for key, value in sorted(found["config"].items())])
    print_report(found)
    return 0


def _active(api: Api) -> str:
    name = api.get("/api/configs/active")["name"]
    if name is None:
        raise Refused("No environment is active; name one, or activate it: simpletuner env activate NAME")
    return str(name)


def create_environment(api: Api, arguments: argparse.Namespace) -> int:
    body = {name: getattr(arguments, name) for name in CREATE_FIELDS if getattr(arguments, name) is not None}
    made = api.post("/api/configs/environments", {"name": arguments.name, **body})
    if arguments.json:
        print_json(made)
    else:
        print_line(f"{made['message']} in {made['environment']['path']}; its datasets: {made['dataloader']['absolute_path']}")
    return 0


def activate_environment(api: Api, arguments: argparse.Namespace) -> int:
    return _done(api.post(f"/api/configs/{part(arguments.name)}/activate"), arguments)


def copy_environment(api: Api, arguments: argparse.Namespace) -> int:
    return _done(api.post(f"/api/configs/{part(arguments.name)}/copy", {"target_name": arguments.target}), arguments)


def _done(answer: dict[str, Any], arguments: argparse.Namespace) -> int:
    if arguments.json:
        print_json(answer)
    else:
        print_line(str(answer["message"]))
    return 0


def export_environment(api: Api, arguments: argparse.Namespace) -> int:
    """Print the configuration, or write it into a file. Secrets are ``***``."""
    document = api.get(f"/api/configs/{part(arguments.name)}/export", include_metadata="false" if arguments.bare else "true")
    if arguments.output is None:
        print_json(document)
        return 0
    try:
        with arguments.output.open("x", encoding="utf-8") as file:
            file.write(json.dumps(document, indent=2, ensure_ascii=False) + "\n")
    except FileExistsError:
        raise Refused(f"{arguments.output} exists; choose another file.") from None
    except OSError as error:
        raise Refused(f"{arguments.output} cannot be written: {error.strerror or error}.") from error
    print_line(f"{arguments.name} is in {arguments.output}")
    return 0


def edit_environment(api: Api, arguments: argparse.Namespace) -> int:
    """Change options that were given, or open the configuration (or the datasets) in an editor."""
    name = arguments.name or _active(api)
    if arguments.datasets:
        stored = api.get(f"/api/configs/{part(name)}/datasets")["datasets"]
        answer = _edited(f"{name}-datasets", stored, lambda document: api.put(f"/api/configs/{part(name)}/datasets", document))
    else:
        stored = api.get(f"/api/configs/{part(name)}")["config"]

        def put(config: Any) -> Any:
            return api.put(f"/api/configs/{part(name)}", {"name": name, "config": config})

        if arguments.option or arguments.unset:
            gone = {_bare(key) for key in arguments.unset} | {_bare(key) for key in arguments.option}
            answer = put({**{key: value for key, value in stored.items() if _bare(key) not in gone}, **arguments.option})
        else:
            answer = _edited(name, stored, put)
    if answer is None:
        print_line(f"{name} is as it was.", sign="[blue]·[/]")
        return 0
    if arguments.json:
        print_json(answer)
    else:
        print_line(str(answer["message"]))
        for advice in (answer.get("validation") or {}).get("warnings", ()):
            print_line(str(advice), sign="[yellow]![/]")
    return 0


def _bare(name: str) -> str:
    return name.lstrip("-").replace("-", "_")


def _edited(name: str, document: Any, put: Any) -> Any:
    """The answer to the edited document; None if it is as before. What was typed is kept in its file if it is refused."""
    editor = read_command_environment().editor
    before = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
    handle, path_text = tempfile.mkstemp(prefix=f"{name}-", suffix=".json")
    path = Path(path_text)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(before)
    try:
        code = subprocess.call([*shlex.split(editor), str(path)])
    except (OSError, ValueError) as error:
        path.unlink()
        raise Refused(f"The editor {editor!r} cannot be started: {error}. Set EDITOR, or change options with -o NAME=VALUE.") from error
    try:
        text = read_small_text(path)
    except OSError as error:
        raise Refused(f"What you typed cannot be read: {error}. It is in {path}.") from error
    if code or text == before:
        path.unlink()
        if code:
            raise Refused(f"The editor ended with code {code}; nothing was changed.")
        return None
    try:
        answer = put(json.loads(text))
    except ValueError as error:
        raise Refused(f"This is no JSON: {error}. What you typed is in {path}.") from error
    except Refused:
        print(f"What you typed is in {path}.", file=sys.stderr)
        raise
    path.unlink()
    return answer
