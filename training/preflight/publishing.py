"""Checks whether results can be uploaded and a remote checkpoint can be fetched. Sends nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from environments.paths import Home
from environments.resolve.json_options import load_publishing, publishing_file
from trainer_engine.config.options import TrainingOptions
from trainer_engine.config.publishing import AZURE, LIBRARIES, OPTION, PublishTarget, how_to_install, is_installed
from trainer_engine.config.resuming.remote_checkpoint import EXPECTED, NotReachable, is_remote, locate
from trainer_engine.config.secrets import hidden_address
from trainer_engine.contract.errors import Problem
from training.preflight.base_model import HubSettings
from training.webhooks.egress import EgressRefused, resolve

RESUME = "resume_from_checkpoint"


def publishing_problems(options: TrainingOptions, home: Home, hub: HubSettings) -> Iterator[Problem]:
    """Problems of the publishing targets, the hub, and a remote checkpoint to resume from."""
    targets, problems = load_publishing(options.publishing.publishing_config, home)
    if publishing_file(options.publishing.publishing_config, home) is not None:  # the option rules check JSON text
        yield from problems
    for target in targets:
        yield from _target_problems(target, f"{OPTION}[{target.place}]")
    yield from _hub_problems(options, hub)
    if is_remote(options.checkpointing.resume_from_checkpoint):
        yield from _resume_problems(options.checkpointing.resume_from_checkpoint, targets)


def _target_problems(target: PublishTarget, where: str) -> Iterator[Problem]:
    if not is_installed(target.provider):
        message = f"{target.provider} needs the library {LIBRARIES[target.provider]}, which is not installed here."
        hint = how_to_install(target.provider)
        yield Problem.error(f"{where}.provider", "not_installed", message, got=target.provider, hint=hint)
    if target.endpoint_url:
        yield from _address_problems(target.endpoint_url, f"{where}.endpoint_url")
    if target.provider == AZURE:
        given = next((name for name in ("connection_string", "account_url") if getattr(target, name)), "account_name")
        yield from _address_problems(target.blob_address, f"{where}.{given}")


def _address_problems(url: str, where: str) -> Iterator[Problem]:
    shown = hidden_address(url)
    try:
        resolve(url)
    except EgressRefused as refusal:
        yield Problem.error(where, "address_refused", f"Nothing is sent to {shown}, or fetched from it: {refusal}.", got=shown)
    except (OSError, UnicodeError) as error:
        message = f"{shown} cannot be reached now: its name cannot be resolved ({error})."
        yield Problem.warning(where, "name_not_found", message, got=shown, hint="uploads are retried while the run lasts")


def _hub_problems(options: TrainingOptions, hub: HubSettings) -> Iterator[Problem]:
    wanted = options.publishing
    if wanted.push_to_hub_background:
        message = "Uploads always run in the background; push_to_hub_background changes nothing."
        yield Problem.note("push_to_hub_background", "always_so", message, got=True)
    if not wanted.push_to_hub:
        return
    if hub.is_offline:
        message = "push_to_hub uploads the result, and the hub is switched off (HF_HUB_OFFLINE)."
        yield Problem.warning("push_to_hub", "hub_is_off", message, got=True, hint="unset HF_HUB_OFFLINE")
    elif not hub.token:
        message = "There is no login for the hub: the result would not be uploaded."
        hint = "run `hf auth login` with a token that may write, or set HF_TOKEN"
        yield Problem.warning("push_to_hub", "no_login", message, got=True, hint=hint)


def _resume_problems(address: str, targets: Sequence[PublishTarget]) -> Iterator[Problem]:
    try:
        found = locate(address, targets)
    except NotReachable as error:
        yield Problem.error(RESUME, error.code, str(error), got=hidden_address(address), expected=EXPECTED)
        return
    if found.provider.endpoint_url:
        yield from _address_problems(found.provider.endpoint_url, RESUME)
