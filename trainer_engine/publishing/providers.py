"""Reads the upload targets of a run and opens their providers.

Each provider imports its library when it is opened, because the libraries are large and optional.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from trainer_engine.config.destinations import hub_target
from trainer_engine.config.option import holds_json
from trainer_engine.config.options import TrainingOptions
from trainer_engine.config.publishing import (
    AZURE,
    B2,
    DROPBOX,
    HUB,
    LIBRARIES,
    OPTION,
    S3,
    PublishTarget,
    how_to_install,
    is_installed,
    parse_publishing_text,
)
from trainer_engine.config.resuming.remote_checkpoint import HTTP
from trainer_engine.contract.errors import Problem
from trainer_engine.contract.files import read_small_text
from trainer_engine.publishing.base import Provider, ProviderError
from trainer_engine.publishing.connect import CLOSED, ConnectionRule


def read_targets(options: TrainingOptions) -> tuple[list[PublishTarget], list[Problem]]:
    """The upload targets of a run with their credentials, and the problems of those that cannot be used."""
    hub = hub_target(options)
    text = options.publishing.publishing_config
    if text and not holds_json(text):
        try:
            text = read_small_text(text)
        except OSError as error:
            problem = Problem.error(
                OPTION, "unreadable_file", f"{text} cannot be read: {error}.", hint="the run continues without its upload targets"
            )
            return [hub] if hub else [], [problem]
    targets, problems = parse_publishing_text(text)
    return ([hub] if hub else []) + targets, problems


def open_provider(target: PublishTarget, rule: ConnectionRule = CLOSED) -> Provider:
    """Open the provider of a target.

    Raises ProviderError if its library is missing, its credentials are malformed, or ``rule`` closes its address.
    """
    library = LIBRARIES.get(target.provider)
    if library and not is_installed(target.provider):
        raise ProviderError(f"{target.provider} needs the library {library}.", hint=how_to_install(target.provider), permanent=True)
    return OPENERS[target.provider](target, rule)


def _s3(target: PublishTarget, rule: ConnectionRule) -> Provider:
    from trainer_engine.publishing.s3 import S3Provider

    return S3Provider(target, rule)


def _azure(target: PublishTarget, rule: ConnectionRule) -> Provider:
    from trainer_engine.publishing.azure import AzureProvider

    return AzureProvider(target, rule)


def _dropbox(target: PublishTarget, rule: ConnectionRule) -> Provider:
    from trainer_engine.publishing.dropbox import DropboxProvider

    return DropboxProvider(target)


def _hub(target: PublishTarget, rule: ConnectionRule) -> Provider:
    from trainer_engine.publishing.hub import HubProvider

    return HubProvider(target)


def _web(target: PublishTarget, rule: ConnectionRule) -> Provider:
    from trainer_engine.publishing.web import WebProvider

    return WebProvider(target, rule)


Opener = Callable[[PublishTarget, ConnectionRule], Provider]
OPENERS: Mapping[str, Opener] = {S3: _s3, B2: _s3, AZURE: _azure, DROPBOX: _dropbox, HUB: _hub, HTTP: _web}
