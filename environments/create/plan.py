"""Plans the content of a new environment before anything is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from environments.create.names import name_problem
from environments.create.own_images import OwnImages, datasets_for, find_images, option_problems, values_for
from environments.create.starter import plain, starter_config, starter_datasets
from environments.examples import Example, find_example, shipped_examples
from environments.files.adapter_file import uses_lycoris
from environments.files.config_files import DATASETS_FILE
from environments.files.datasets_file import OPTION, destination
from environments.paths import Home
from environments.resolve.checks import check_config
from trainer_engine.config.families import find_spec, known_but_missing, specs
from trainer_engine.config.family_spec import FamilySpec
from trainer_engine.config.options import REGISTRY
from trainer_engine.config.parse import normalise
from trainer_engine.contract.errors import Problem


@dataclass(frozen=True)
class NewEnvironment:
    """A request for a new environment. Family, flavour and type may come from the example."""

    name: str
    model_family: str | None = None
    model_flavour: str | None = None
    model_type: str | None = None
    lora_type: str | None = None
    description: str = ""
    example: str | None = None
    dataloader_path: str | None = None
    create_dataloader: bool = True
    images: str | None = None
    """A folder of images to train on; it exists."""
    trigger_word: str = ""
    """What the images show: a word that stands in each caption."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Laid over the example, names with or without dashes."""


@dataclass(frozen=True)
class PlannedEnvironment:
    """What will be written."""

    config: dict[str, Any]
    """Canonical option name -> typed value."""
    datasets: list[dict[str, Any]] | None
    """None if no datasets file is to be written."""
    datasets_path: Path | None
    adapter: dict[str, Any] | None = None
    """The adapter file; None if none is to be written."""


def plan(request: NewEnvironment, home: Home) -> PlannedEnvironment | list[Problem]:
    """The configuration and datasets of a new environment, or everything that is wrong with the request."""
    problems = [problem for problem in (name_problem(request.name),) if problem]
    example = find_example(request.example) if request.example else None
    if request.example and example is None:
        known = ", ".join(one.name for one in shipped_examples())
        problems.append(
            Problem.error(
                "example", "unknown_example", f"There is no example {request.example!r}.", got=request.example, expected=f"one of {known}"
            )
        )
    base = example.config if example else {}
    spec = _spec(request.model_family or base.get("model_family"), problems)
    if spec is None:
        return problems
    flavour = request.model_flavour or base.get("model_flavour") or spec.default_flavour
    model_type = request.model_type or base.get("model_type") or "lora"
    problems += _choices(request, spec, flavour, model_type)
    path = destination(request.dataloader_path, "dataloader_path", home) if request.dataloader_path else None
    images = find_images(request.images, request.trigger_word, home)
    options, wrong = normalise(request.options)
    problems += [found for found in (path, images) if isinstance(found, Problem)]
    problems += [*wrong, *option_problems(options)]
    if problems or isinstance(images, Problem):
        return problems
    lora_type = request.lora_type or base.get("lora_type") or REGISTRY["lora_type"].default
    starter = starter_config(request.name, spec, flavour, model_type, lora_type)
    own = values_for(images, is_adapter=model_type == "lora", has_example=example is not None) if images else {}
    return _planned(request, example, {**starter, **own}, {**own, **options}, images, spec, home)


def _spec(family: object, problems: list[Problem]) -> FamilySpec | None:
    available = f"one of {', '.join(sorted(specs()))}"
    name = str(family or "")
    spec = find_spec(name)
    if spec is not None:
        return spec
    if not name.strip():
        problems.append(Problem.error("model_family", "missing", "model_family is missing.", expected=available))
    elif known_but_missing(name):
        problems.append(
            Problem.error(
                "model_family", "not_available", f"The model family {name} is known, not available yet.", got=name, expected=available
            )
        )
    else:
        problems.append(
            Problem.error("model_family", "unknown_family", f"There is no model family {name!r}.", got=name, expected=available)
        )
    return None


def _choices(request: NewEnvironment, spec: FamilySpec, flavour: str, model_type: str) -> list[Problem]:
    problems = []
    if flavour not in spec.flavours:
        message = f"{spec.title} has no flavour {flavour!r}."
        problems.append(
            Problem.error("model_flavour", "unknown_flavour", message, got=flavour, expected=f"one of {', '.join(spec.flavours)}")
        )
    known = REGISTRY["model_type"].choices
    if model_type not in known:
        message = f"model_type is {model_type!r}."
        problems.append(Problem.error("model_type", "not_a_choice", message, got=model_type, expected=f"one of {', '.join(known)}"))
    elif model_type not in spec.model_types:
        expected = f"one of {', '.join(spec.model_types)}"
        message = f"model_type={model_type} is known, not available yet for {spec.title}."
        hint = "" if request.model_type else "lora is what a request without model_type means"
        problems.append(Problem.error("model_type", "not_available", message, got=model_type, expected=expected, hint=hint))
    lora_types = REGISTRY["lora_type"].choices
    if request.lora_type is not None and request.lora_type not in lora_types:
        message = f"lora_type is {request.lora_type!r}."
        problems.append(
            Problem.error("lora_type", "not_a_choice", message, got=request.lora_type, expected=f"one of {', '.join(lora_types)}")
        )
    elif request.lora_type is not None and model_type == "full":
        hint = "leave it out, or send model_type=lora"
        problems.append(Problem.error("lora_type", "no_adapter", "model_type=full trains no adapter.", got=request.lora_type, hint=hint))
    return problems


def _planned(
    request: NewEnvironment,
    example: Example | None,
    starter: dict[str, Any],
    options: Mapping[str, Any],
    images: OwnImages | None,
    spec: FamilySpec,
    home: Home,
) -> PlannedEnvironment | list[Problem]:
    given = request.dataloader_path or f"{request.name}/{DATASETS_FILE}"
    config = {**starter, **(example.config if example else {})}
    kept = ("model_family", "model_type", "model_flavour", "pretrained_model_name_or_path", "output_dir", "lora_type", "lycoris_config")
    config = {name: value for name, value in config.items() if name not in kept} | {name: starter[name] for name in kept if name in starter}
    config |= {**options, OPTION: given}
    checked = check_config(config, home)
    path = destination(given, OPTION, home)
    if checked.errors or isinstance(path, Problem):
        return checked.errors + ([path] if isinstance(path, Problem) else [])
    datasets = example.datasets if example else starter_datasets(request.name, checked.values)
    datasets = datasets_for(images, request.name, datasets, options) if images else datasets
    adapter = plain(spec.adapters.lycoris_start) if uses_lycoris(config) else None
    return PlannedEnvironment(checked.values, datasets if request.create_dataloader else None, path, adapter)
