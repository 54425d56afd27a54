"""What the options of publishing must keep together."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from trainer_engine.contract.errors import Problem

REPOSITORY = re.compile(r"(?:[A-Za-z0-9][\w.-]{0,95}/)?[A-Za-z0-9][\w.-]{0,95}", re.ASCII)


def publishing_fits_together(values: Mapping[str, Any]) -> Iterator[Problem]:
    """Checkpoints go where the result goes, and the repository has a name that the hub takes."""
    if values["push_checkpoints_to_hub"] and not values["push_to_hub"]:
        message = "push_checkpoints_to_hub uploads checkpoints to the repository of push_to_hub, which is off."
        yield Problem.error("push_checkpoints_to_hub", "needs_another", message, got=True, expected="push_to_hub=true besides")
    name = values["hub_model_id"]
    if name and (not REPOSITORY.fullmatch(name) or ".." in name or "--" in name or name.endswith((".", "-", ".git"))):
        message, expected = "hub_model_id is no name of a repository.", "name or owner/name: letters, digits, dashes, dots and underscores"
        yield Problem.error("hub_model_id", "not_a_repository", message, got=name, expected=expected)
