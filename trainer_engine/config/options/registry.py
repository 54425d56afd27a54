"""The registry: every option by name, and ``TrainingOptions``, which holds the options of a run with their types."""

from __future__ import annotations

import importlib
import importlib.util
import json
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from importlib import resources
from types import MappingProxyType, ModuleType
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict

from trainer_engine import families
from trainer_engine.config.option import OptionGroup, OptionSpec, spec_of
from trainer_engine.config.options.adapter import AdapterOptions
from trainer_engine.config.options.checkpointing import CheckpointingOptions
from trainer_engine.config.options.computation import AttentionOptions, AutoencoderOptions
from trainer_engine.config.options.data import DataOptions
from trainer_engine.config.options.evaluation import EvaluationOptions, ScoringOptions
from trainer_engine.config.options.gone import RENAMED
from trainer_engine.config.options.hooks import HooksOptions
from trainer_engine.config.options.memory import MemoryOptions
from trainer_engine.config.options.model import ModelOptions, ObjectiveOptions
from trainer_engine.config.options.optimizer import OptimizerOptions
from trainer_engine.config.options.precision import PrecisionOptions
from trainer_engine.config.options.publishing import PublishingOptions, ReportingOptions
from trainer_engine.config.options.run import DistributedOptions, RunOptions, ScheduleOptions
from trainer_engine.config.options.sdnq import SdnqOptions
from trainer_engine.config.options.validation import ValidationOptions
from trainer_engine.config.secrets import hide
from trainer_engine.contract.errors import Problem

Group = TypeVar("Group", bound=OptionGroup)
Values = Mapping[str, Any]
"""Option name -> typed value, for every option."""
Rule = Callable[[Values], Iterator[Problem]]
"""Yields the problems of the values of a run as a whole."""


class TrainingOptions(BaseModel):
    """The options of a run in their groups: ``options.optimizer.learning_rate``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: ModelOptions
    adapter: AdapterOptions
    run: RunOptions
    data: DataOptions
    objective: ObjectiveOptions
    optimizer: OptimizerOptions
    schedule: ScheduleOptions
    precision: PrecisionOptions
    sdnq: SdnqOptions
    autoencoder: AutoencoderOptions
    attention: AttentionOptions
    memory: MemoryOptions
    checkpointing: CheckpointingOptions
    validation: ValidationOptions
    evaluation: EvaluationOptions
    scoring: ScoringOptions
    distributed: DistributedOptions
    reporting: ReportingOptions
    hooks: HooksOptions
    publishing: PublishingOptions
    families: dict[str, Any]
    """Family -> its own option group, for each family that has one. ``of_family`` returns it with its type."""

    @property
    def is_compiled(self) -> bool:
        """Whether the network is compiled. One whose weights are bound anew in every step is not."""
        return self.distributed.dynamo_backend != "no" and not self.memory.streams_network

    def of_family(self, group: type[Group]) -> Group:
        """Returns the options that a family declares for itself."""
        found: Group = next(own for own in self.families.values() if isinstance(own, group))
        return found

    def as_values(self) -> dict[str, Any]:
        """Returns the typed value of every option by name."""
        values: dict[str, Any] = {}
        for group in GROUPS:
            values.update((self.families[group] if group in FAMILY_GROUPS else getattr(self, group)).model_dump())
        return values

    def non_default(self) -> dict[str, Any]:
        """Returns the options that differ from the registry's default, by name, with secrets hidden."""
        return {
            name: hide(REGISTRY[name], value) if REGISTRY[name].secret else value
            for name, value in self.as_values().items()
            if REGISTRY[name].required or value != REGISTRY[name].default
        }


def _groups() -> dict[str, type[OptionGroup]]:
    found: dict[str, type[OptionGroup]] = {}
    for name, info in TrainingOptions.model_fields.items():
        if name == "families":
            continue
        assert isinstance(info.annotation, type) and issubclass(info.annotation, OptionGroup)
        found[name] = info.annotation
    return found


def _option_modules() -> dict[str, ModuleType]:
    """Returns the ``options.py`` module of each family that has one."""
    found: dict[str, ModuleType] = {}
    for family in pkgutil.iter_modules(families.__path__):
        name = f"{families.__name__}.{family.name}.options"
        if family.ispkg and importlib.util.find_spec(name):
            found[family.name] = importlib.import_module(name)
    return found


def _registry() -> dict[str, OptionSpec]:
    found: dict[str, OptionSpec] = {}
    for group, cls in GROUPS.items():
        for name, info in cls.model_fields.items():
            assert name not in found, f"{name} is declared twice"
            found[name] = spec_of(name, group, info)
    return found


_MODULES = _option_modules()
FAMILY_GROUPS: Mapping[str, type[OptionGroup]] = MappingProxyType({family: module.GROUP for family, module in _MODULES.items()})
FAMILY_RULES: Mapping[str, tuple[Rule, ...]] = MappingProxyType({family: module.RULES for family, module in _MODULES.items()})
"""Family -> the rules of its own options."""
GROUPS: Mapping[str, type[OptionGroup]] = MappingProxyType({**_groups(), **FAMILY_GROUPS})
REGISTRY: Mapping[str, OptionSpec] = MappingProxyType(_registry())
ALIASES: Mapping[str, str] = MappingProxyType({**RENAMED, **{alias: spec.name for spec in REGISTRY.values() for alias in spec.aliases}})


@cache
def not_available() -> Mapping[str, Any]:
    """Returns the options of the format that are not implemented yet, with the format's default, or None without one.

    The file may list options of a family; they are available once the family's folder declares them.
    """
    text = resources.files(__package__).joinpath("not_available.json").read_text(encoding="utf-8")
    known: dict[str, Any] = json.loads(text)
    return MappingProxyType({name: default for name, default in known.items() if name not in REGISTRY})


def canonical_name(key: str) -> str:
    """Returns the canonical name of an option: without leading dashes, with underscores, and with aliases resolved."""
    name = key.strip().lstrip("-").replace("-", "_")
    return ALIASES.get(name, name)


def build(values: Mapping[str, Any]) -> TrainingOptions:
    """Builds the options of a run from typed values by canonical name. Missing options take their default.

    Raises pydantic.ValidationError if a value is wrong.
    """
    grouped: dict[str, Any] = {group: {name: values[name] for name in cls.model_fields if name in values} for group, cls in GROUPS.items()}
    own = {family: cls.model_validate(grouped.pop(family)) for family, cls in FAMILY_GROUPS.items()}
    return TrainingOptions.model_validate({**grouped, "families": own})
