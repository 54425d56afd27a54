"""The stores of a run, with their credentials: the one place where the engine reads them."""

from __future__ import annotations

from trainer_engine.config.destinations import hub_target
from trainer_engine.config.option import holds_json
from trainer_engine.config.options import TrainingOptions
from trainer_engine.config.publishing import OPTION, PublishTarget, parse_publishing_text
from trainer_engine.contract.errors import Problem
from trainer_engine.contract.files import read_small_text


def read_targets(options: TrainingOptions) -> tuple[list[PublishTarget], list[Problem]]:
    """Where a run is uploaded to, and what is wrong with the rest."""
    hub = hub_target(options)
    text = options.publishing.publishing_config
    if text and not holds_json(text):
        try:
            text = read_small_text(text)
        except OSError as error:
            problem = Problem.error(OPTION, "unreadable_file", f"{text} cannot be read: {error}.", hint="the upload stores are left out")
            return [hub] if hub else [], [problem]
    stores, problems = parse_publishing_text(text)
    return ([hub] if hub else []) + stores, problems
