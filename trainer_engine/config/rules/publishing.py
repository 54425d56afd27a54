"""Rules of trackers, the hub and storage providers."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from pathlib import PurePosixPath

from trainer_engine.config.destinations import KNOWN as TRACKERS
from trainer_engine.config.destinations import parse_trackers
from trainer_engine.config.option import holds_json
from trainer_engine.config.options.registry import Rule, Values
from trainer_engine.config.publishing import HIDDEN_SECRET, OPTION, parse_publishing_text
from trainer_engine.contract.errors import Problem

REPOSITORY = re.compile(r"(?:[A-Za-z0-9][\w.-]{0,95}/)?[A-Za-z0-9][\w.-]{0,95}", re.ASCII)


def trackers_are_known(values: Values) -> Iterator[Problem]:
    try:
        names = parse_trackers(values["report_to"])
    except ValueError as error:
        expected = f"none, or some of {', '.join(TRACKERS)} with commas"
        yield Problem.error("report_to", "unknown_tracker", f"report_to: {error}.", got=values["report_to"], expected=expected)
        return
    folder = PurePosixPath(values["logging_dir"])
    if folder.is_absolute() or ".." in folder.parts:
        message = f"logging_dir={folder} leads out of output_dir."
        yield Problem.error("logging_dir", "outside_output", message, got=values["logging_dir"], expected="a folder below output_dir: logs")
    for name in names:
        if importlib.util.find_spec(name) is None:
            message = f"The tracker {name} is not installed here."
            yield Problem.error("report_to", "not_installed", message, got=name, hint=f"pip install {name}")


def publishing_fits_together(values: Values) -> Iterator[Problem]:
    """Checkpoints go where the result goes, and the repository has a name that the hub takes."""
    if values["push_checkpoints_to_hub"] and not values["push_to_hub"]:
        message = "push_checkpoints_to_hub uploads checkpoints to the repository of push_to_hub, which is off."
        yield Problem.error("push_checkpoints_to_hub", "needs_another", message, got=True, expected="push_to_hub=true besides")
    if not values["model_card_private"] and not values["push_to_hub"]:
        message = "model_card_private is of the hub's repository, and push_to_hub is off."
        yield Problem.note("model_card_private", "no_effect", message, got=False)
    address = str(values["resume_from_checkpoint"] or "")
    if "://" in address and "@" in address.partition("://")[2].partition("/")[0]:
        message = "resume_from_checkpoint holds a user or a password: options are shown, so it would be too."
        hint = "name the store with its keys in publishing_config"
        yield Problem.error("resume_from_checkpoint", "password_in_address", message, expected="an address without them", hint=hint)
    name = values["hub_model_id"]
    if name and (not REPOSITORY.fullmatch(name) or ".." in name or "--" in name or name.endswith((".", "-", ".git"))):
        message, expected = "hub_model_id is no name of a repository.", "name or owner/name: letters, digits, dashes, dots and underscores"
        yield Problem.error("hub_model_id", "not_a_repository", message, got=name, expected=expected)


def stores_are_right(values: Values) -> Iterator[Problem]:
    """Those that are written out; a file that is named is looked at before a run. What is hidden is looked at where it is stored."""
    text = str(values[OPTION])
    if holds_json(text):
        yield from (problem for problem in parse_publishing_text(text)[1] if problem.code != HIDDEN_SECRET)
    elif "://" in text:
        message = "publishing_config is an address; it takes a list of stores, each with its provider."
        hint = '[{"provider": "s3", "bucket": "…"}]'
        yield Problem.error(OPTION, "not_json", message, expected="JSON in a string, or the path of a JSON file", hint=hint)


RULES: tuple[Rule, ...] = (
    trackers_are_known,
    publishing_fits_together,
    stores_are_right,
)
