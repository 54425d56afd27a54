"""Environments as the API shows them."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from environments.examples import Example
from environments.files.config_files import LYCORIS_FILE, dashed, folder_of, read_text
from environments.files.datasets_file import OPTION, locate
from environments.files.json_text import BadJson, parse_json
from environments.models import Environment
from environments.paths import Home
from environments.resolve.webhook_targets import stored_folder, stored_names

CONFIG_TYPES = ("model", "dataloader", "lycoris", "webhook")


def meta(environment: Environment) -> dict[str, Any]:
    """The metadata of an environment: everything but its options."""
    config = environment.config
    return {
        "name": environment.name,
        "description": environment.description,
        "model_family": config.get("model_family"),
        "model_type": config.get("model_type"),
        "model_flavour": config.get("model_flavour"),
        "lora_type": config.get("lora_type"),
        "created_at": environment.created_at.isoformat(),
        "modified_at": environment.modified_at.isoformat(),
        "tags": environment.tags,
        "is_template": False,
        "parent_template": None,
    }


def listed(environment: Environment, home: Home) -> dict[str, Any]:
    """An environment as a row of the list."""
    datasets = locate(environment.config, home)
    return {
        **meta(environment),
        "dataloader_path": str(datasets.path) if datasets.path else None,
        "data_backend_config": environment.config.get(OPTION),
        "has_dataloader": datasets.exists,
    }


def of_type(config_type: str, environments: list[Environment], home: Home) -> list[dict[str, Any]]:
    """The rows of a list: environments, or the files of another type that belong to them."""
    rows = [listed(environment, home) for environment in environments]
    if config_type == "dataloader":
        return [row for row in rows if row["has_dataloader"]] + _loose_datasets_files(rows, home)
    if config_type == "lycoris":
        return [row for row in rows if (folder_of(home, row["name"]) / LYCORIS_FILE).is_file()]
    return rows if config_type == "model" else _webhook_files(home)


def _webhook_files(home: Home) -> list[dict[str, Any]]:
    """Lists of webhook targets: those stored under a name, and those in ``config/`` itself, such as the sample."""
    named = [stored_folder(home) / f"{name}.json" for name in stored_names(home)]
    loose = [path for path in sorted(home.config.glob("*.json")) if _holds(path, home, "webhook_type")]
    return [{**_loose(path), "data_backend_config": None, "has_dataloader": False, "dataloader_path": None} for path in named + loose]


def _loose_datasets_files(rows: list[dict[str, Any]], home: Home) -> list[dict[str, Any]]:
    """Datasets files in ``config/`` itself, for runs without an environment."""
    taken = {row["dataloader_path"] for row in rows}
    paths = sorted(path for path in home.config.glob("*.json") if path.is_file()) if home.config.is_dir() else []
    return [_loose(path) for path in paths if str(path.resolve()) not in taken and _holds(path, home, "id")]


def _holds(path: Path, home: Home, field: str) -> bool:
    """Whether a file is a list of objects that all have a field."""
    text = read_text(home, path).text
    try:
        document = parse_json(text) if text else None
    except BadJson:
        return False
    return isinstance(document, list) and bool(document) and all(isinstance(entry, dict) and field in entry for entry in document)


def _loose(path: Path) -> dict[str, Any]:
    modified = datetime.fromtimestamp(path.stat().st_mtime, tz=timezone.utc).isoformat()
    nothing = dict.fromkeys(("model_family", "model_type", "model_flavour", "lora_type", "parent_template"))
    return {
        "name": path.stem,
        "description": "",
        **nothing,
        "created_at": modified,
        "modified_at": modified,
        "tags": [],
        "is_template": False,
        "dataloader_path": str(path.resolve()),
        "data_backend_config": f"config/{path.name}",
        "has_dataloader": True,
    }


def shown(environment: Environment) -> dict[str, Any]:
    """One environment, with ``problems`` if its file cannot be used."""
    problems = {"problems": environment.file_problems} if environment.file_problems else {}
    return {
        "name": environment.name,
        "config": dashed(environment.config),
        "metadata": meta(environment),
        "config_type": "model",
        **problems,
    }


def example(one: Example) -> dict[str, Any]:
    """One shipped template."""
    names = ("model_family", "model_type", "model_flavour", "lora_type", "data_backend_config")
    return {
        "name": one.name,
        "defaults": {name: one.config.get(name) for name in names},
        "description": one.description,
        "config_path": str(one.config_path),
        "dataloader_path": str(one.datasets_path),
        "has_dataloader": one.datasets_path.is_file(),
    }
