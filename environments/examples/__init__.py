"""The templates that ship with the package. Each is a folder with the files of an environment."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from environments.files.config_files import CONFIG_FILE, DATASETS_FILE
from environments.files.json_text import parse_json
from trainer_engine.config.parse import normalise

FOLDER = Path(__file__).resolve().parent
DESCRIPTION_FILE = "description.txt"


@dataclass(frozen=True)
class Example:
    """One template. Its paths are relative to the server's home."""

    name: str
    description: str
    config: dict[str, Any]
    """Canonical option name -> typed value."""
    datasets: list[dict[str, Any]]

    @property
    def config_path(self) -> Path:
        return FOLDER / self.name / CONFIG_FILE

    @property
    def datasets_path(self) -> Path:
        return FOLDER / self.name / DATASETS_FILE


@cache
def shipped_examples() -> tuple[Example, ...]:
    """Every template, by name."""
    return tuple(_read(folder) for folder in sorted(FOLDER.iterdir()) if (folder / CONFIG_FILE).is_file())


def find_example(name: str) -> Example | None:
    """The template with this name, or None."""
    return next((example for example in shipped_examples() if example.name == name), None)


def first_lora(family: str, flavour: str) -> Example | None:
    """The template of an adapter of a flavour that is trained on images alone, without a second file for each."""
    wanted = {"model_family": family, "model_flavour": flavour, "model_type": "lora", "lora_type": "standard"}
    fitting = (one for one in shipped_examples() if all(one.config.get(name) == value for name, value in wanted.items()))
    return next((one for one in fitting if not any(map(_has_second_files, one.datasets))), None)


def _has_second_files(entry: dict[str, Any]) -> bool:
    return entry.get("dataset_type") == "conditioning" or "conditioning" in entry


def _read(folder: Path) -> Example:
    config, problems = normalise(parse_json((folder / CONFIG_FILE).read_bytes()))
    assert not problems, f"the shipped example {folder.name} is broken: {problems}"
    description = (folder / DESCRIPTION_FILE).read_text(encoding="utf-8").strip()
    return Example(folder.name, description, config, parse_json((folder / DATASETS_FILE).read_bytes()))
