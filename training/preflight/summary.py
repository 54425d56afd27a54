"""The report of the checks before a run starts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from environments.resolve.run import ResolvedRun
from trainer_engine.config.webhooks import WebhookTarget
from trainer_engine.contract.errors import Level, Problem


@dataclass(frozen=True)
class PreflightReport:
    """The result of ``validate``."""

    resolved: ResolvedRun
    problems: list[Problem]
    """Errors, warnings and notes about the options, the datasets and the machine."""
    understood: dict[str, Any] = field(default_factory=dict)
    """JSON-able: datasets, steps, epochs, batches, memory, disk. Empty if the configuration is too broken."""

    webhooks: tuple[WebhookTarget, ...] = ()
    """The targets for the run's events."""

    def at(self, level: Level) -> list[Problem]:
        return [problem for problem in self.problems if problem.level is level]

    @property
    def errors(self) -> list[Problem]:
        return self.at(Level.ERROR)

    @property
    def warnings(self) -> list[Problem]:
        return self.at(Level.WARNING)

    @property
    def notes(self) -> list[Problem]:
        return self.at(Level.NOTE)
