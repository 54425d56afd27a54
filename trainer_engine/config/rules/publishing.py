"""What the options of publishing must keep together."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from trainer_engine.config.option import holds_json
from trainer_engine.config.publishing import HIDDEN_SECRET, OPTION, parse_publishing_text
from trainer_engine.contract.errors import Problem

REPOSITORY = re.compile(r"(?:[A-Za-z0-9][\w.-]{0,95}/)?[A-Za-z0-9][\w.-]{0,95}", re.ASCII)


def stores_are_right(values: Mapping[str, Any]) -> Iterator[Problem]:
    """Those that are written out; a file that is named is looked at before a run. What is hidden is looked at where it is stored."""
    text = str(values[OPTION])
    if holds_json(text):
        yield from (problem for problem in parse_publishing_text(text)[1] if problem.code != HIDDEN_SECRET)
    elif "://" in text:
        message = "publishing_config is an address; it takes a list of stores, each with its provider."
        hint = '[{"provider": "s3", "bucket": "…"}]'
        yield Problem.error(OPTION, "not_json", message, expected="JSON in a string, or the path of a JSON file", hint=hint)


def publishing_fits_together(values: Mapping[str, Any]) -> Iterator[Problem]:
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
