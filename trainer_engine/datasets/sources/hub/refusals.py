"""Why the hub does not give a dataset, in the same words for ``validate`` and for the engine."""

from __future__ import annotations

from trainer_engine.contract.errors import Problem

LOGIN = "accept its conditions on the hub and log in with `hf auth login`, or set HF_TOKEN"


def gated(option: str, repository: str) -> Problem:
    message = f"Access to the dataset {repository} must be requested on the hub."
    return Problem.error(option, "dataset_gated", message, got=repository, hint=LOGIN)


def not_found(option: str, repository: str) -> Problem:
    message = f"The hub has no dataset {repository}, or this account may not see it."
    hint = "check the spelling; for a private dataset set HF_TOKEN; a folder needs a path that exists"
    return Problem.error(option, "dataset_not_found", message, got=repository, hint=hint)


def no_revision(option: str, repository: str, revision: str | None) -> Problem:
    """``option`` names the field of the dataset; the problem is of the field ``revision`` beside it."""
    field = f"{option.rpartition('.')[0]}.revision"
    message = f"The dataset {repository} has no revision {revision}."
    return Problem.error(field, "revision_not_found", message, got=revision, expected="a branch, tag or commit")


def not_cached(option: str, repository: str, reason: str) -> Problem:
    message = f"The dataset {repository} cannot be read, and the hub is switched off (HF_HUB_OFFLINE): {reason}."
    hint = "download it first, or give the path of a local folder"
    return Problem.error(option, "dataset_not_cached", message, got=repository, hint=hint)


def not_reached(option: str, repository: str, reason: str) -> Problem:
    message = f"The dataset {repository} is not in the cache of the hub, and the hub could not be reached ({reason})."
    hint = "check the network, HF_ENDPOINT and HF_HUB_OFFLINE, or give the path of a local copy"
    return Problem.error(option, "hub_not_reached", message, got=repository, hint=hint)
