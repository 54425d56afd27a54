"""Rules of trackers, the hub and storage providers."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from pathlib import PurePosixPath

from trainer_engine.config.destinations import KNOWN as TRACKERS
from trainer_engine.config.destinations import parse_trackers
from trainer_engine.config.model_comment import comment_problems
from trainer_engine.config.option import holds_json
from trainer_engine.config.options.registry import Rule, Values
from trainer_engine.config.publishing import HIDDEN_SECRET, OPTION, parse_publishing_text
from trainer_engine.contract.errors import Problem

LAYOUT = "tracker_image_layout"
REPOSITORY = re.compile(r"(?:[A-Za-z0-9][\w.-]{0,95}/)?[A-Za-z0-9][\w.-]{0,95}", re.ASCII)


def trackers_are_known(values: Values) -> Iterator[Problem]:
    try:
        names = parse_trackers(values["report_to"])
    except ValueError as error:
        expected = f"none, or some of {', '.join(TRACKERS)}, separated by commas"
        yield Problem.error("report_to", "unknown_tracker", f"report_to: {error}.", got=values["report_to"], expected=expected)
        return
    folder = PurePosixPath(values["logging_dir"])
    if folder.is_absolute() or ".." in folder.parts:
        message = f"logging_dir={folder} lies outside output_dir."
        yield Problem.error("logging_dir", "outside_output", message, got=values["logging_dir"], expected="a folder below output_dir: logs")
    if values[LAYOUT] == "table" and "wandb" not in names:
        message = f"Only wandb shows tables, and report_to does not name it: {LAYOUT} has no effect."
        yield Problem.note(LAYOUT, "no_effect", message, got="table")
    for name in names:
        if importlib.util.find_spec(name) is None:
            message = f"The tracker {name} is not installed here."
            yield Problem.error("report_to", "not_installed", message, got=name, hint=f"pip install {name}")


def publishing_fits_together(values: Values) -> Iterator[Problem]:
    """Checks that options of the hub agree, that no address holds a password, and that the hub accepts the repository's name."""
    if values["push_checkpoints_to_hub"] and not values["push_to_hub"]:
        message = "push_checkpoints_to_hub uploads checkpoints to the repository of push_to_hub, which is off."
        yield Problem.error("push_checkpoints_to_hub", "needs_another", message, got=True, expected="push_to_hub=true as well")
    if not values["model_card_private"] and not values["push_to_hub"]:
        message = "model_card_private applies to the repository on the hub, but push_to_hub is off."
        yield Problem.note("model_card_private", "no_effect", message, got=False)
    address = str(values["resume_from_checkpoint"] or "")
    if "://" in address and "@" in address.partition("://")[2].partition("/")[0]:
        message = "resume_from_checkpoint contains a user name or a password, which would be shown with the options."
        hint = "put the storage provider and its keys into publishing_config"
        yield Problem.error("resume_from_checkpoint", "password_in_address", message, expected="an address without them", hint=hint)
    name = values["hub_model_id"]
    if name and (not REPOSITORY.fullmatch(name) or ".." in name or "--" in name or name.endswith((".", "-", ".git"))):
        message = "hub_model_id is not a valid repository name."
        expected = "name or owner/name: letters, digits, dashes, dots and underscores"
        yield Problem.error("hub_model_id", "not_a_repository", message, got=name, expected=expected)


def publishing_config_is_valid(values: Values) -> Iterator[Problem]:
    """Checks providers given as JSON. A file is checked when a run starts, and hidden secrets where they are stored."""
    text = str(values[OPTION])
    if holds_json(text):
        yield from (problem for problem in parse_publishing_text(text)[1] if problem.code != HIDDEN_SECRET)
    elif "://" in text:
        message = "publishing_config is a URL, but it must be a list of storage providers, each with its provider field."
        hint = '[{"provider": "s3", "bucket": "…"}]'
        yield Problem.error(OPTION, "not_json", message, expected="JSON in a string, or the path of a JSON file", hint=hint)


def comment_is_a_text(values: Values) -> Iterator[Problem]:
    yield from comment_problems(values["modelspec_comment"])


RULES: tuple[Rule, ...] = (
    trackers_are_known,
    publishing_fits_together,
    publishing_config_is_valid,
    comment_is_a_text,
)
