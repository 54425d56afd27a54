"""Finds base models on this machine and asks the hub for the others, without torch and without downloading."""

from __future__ import annotations

import urllib.error
import urllib.request
from http.client import HTTPException
from pathlib import Path
from urllib.parse import quote

from trainer_engine.config import components
from trainer_engine.config.controlnet import FOLDER
from trainer_engine.config.families import trained_folders
from trainer_engine.config.hub import HubSettings as HubSettings
from trainer_engine.config.one_file.layout import is_one_file
from trainer_engine.contract.errors import Problem
from trainer_engine.contract.files import is_file

ANSWER_SECONDS = 5.0


def cached_snapshot(hub: HubSettings, repository: str, revision: str | None) -> Path | None:
    """The folder of a repository's files in the local cache; None if it is not cached."""
    return components.cached_snapshot(hub.cache, repository, revision)


def find_weights(source: str, revision: str | None, hub: HubSettings) -> Path | None:
    """The local folder of a model, given as a folder or a repository id; None if it has to be downloaded."""
    return components.local_folder(hub.cache, source, revision)


def check_access(option: str, source: str, revision: str | None, hub: HubSettings) -> Problem | None:
    """The problem that keeps the engine from loading a model; None if it is local or on the hub. A note if the hub does not answer.

    Another check looks at models in one file.
    """
    if is_one_file(source):
        return None
    if Path(source).is_absolute():
        return _check_folder(option, Path(source))
    if cached_snapshot(hub, source, revision) is not None:
        return None
    if hub.is_offline:
        message = f"The model {source} is not in the local cache ({hub.cache}), and the hub is switched off (HF_HUB_OFFLINE)."
        return Problem.error(option, "model_not_cached", message, got=source, hint="download it first, or give the path of a local folder")
    return _ask_hub(option, source, revision, hub)


def check_file(option: str, repository: str, file: str, hub: HubSettings) -> Problem | None:
    """Like ``check_access``, for one file of a repository that is not in the cache."""
    got = f"{repository}:{file}"
    if hub.is_offline:
        message = f"{got} is not in the local cache ({hub.cache}), and the hub is switched off (HF_HUB_OFFLINE)."
        return Problem.error(option, "model_not_cached", message, got=got, hint="download it first, or give the path of a local file")
    return _ask_hub(option, repository, None, hub, file)


def _check_folder(option: str, folder: Path) -> Problem | None:
    known = (
        components.PIPELINE_INDEX,
        components.MODULAR_INDEX,
        "config.json",
        *(f"{name}/config.json" for name in (*trained_folders(), FOLDER)),
        "text_encoder/config.json",
        "vae/config.json",
    )
    if any(is_file(folder / name) for name in known):
        return None
    message = f"{folder} holds no model in the Diffusers layout."
    return Problem.error(
        option, "not_a_model", message, got=str(folder), expected=f"a folder with model_index.json or {trained_folders()[0]}/config.json"
    )


def _ask_hub(option: str, source: str, revision: str | None, hub: HubSettings, file: str = "") -> Problem | None:
    """``file`` must exist in the repository; empty checks the repository only."""
    address = f"{hub.endpoint}/{source}/resolve/{quote(revision or 'main', safe='')}/{quote(file or 'model_index.json')}"
    request = urllib.request.Request(address, method="HEAD")
    if hub.token:
        request.add_unredirected_header("Authorization", f"Bearer {hub.token}")  # other hosts serve the files and must not get it
    try:
        urllib.request.urlopen(request, timeout=ANSWER_SECONDS).close()
    except urllib.error.HTTPError as error:
        if file and error.headers.get("X-Error-Code", "") == "EntryNotFound":
            message = f"The repository {source} holds no file {file}."
            return Problem.error(option, "not_found", message, got=f"{source}:{file}", expected="one of its files")
        return _refused(option, source, revision, error.code, error.headers.get("X-Error-Code", ""))
    except (OSError, ValueError, HTTPException) as error:
        message = f"It is unknown whether {source} can be downloaded: {hub.endpoint} does not answer ({error})."
        return Problem.note(option, "hub_not_reached", message, got=source)
    return None


def _refused(option: str, source: str, revision: str | None, status: int, code: str) -> Problem | None:
    if code == "EntryNotFound":
        return None
    if code == "GatedRepo" or status == 403:
        hint = "accept its conditions on the hub and log in with `hf auth login`, or set HF_TOKEN"
        return Problem.error(option, "model_gated", f"Access to {source} must be requested on the hub.", got=source, hint=hint)
    if code == "RevisionNotFound":
        return Problem.error(
            "revision", "revision_not_found", f"{source} has no revision {revision}.", got=revision, expected="a branch, tag or commit"
        )
    if status in (401, 404):
        message = f"The hub has no model {source}, or this account may not see it."
        return Problem.error(option, "model_not_found", message, got=source, hint="check the spelling; for a private model set HF_TOKEN")
    return Problem.note(option, "hub_not_reached", f"The hub answered {status} when asked for {source}.", got=source)
