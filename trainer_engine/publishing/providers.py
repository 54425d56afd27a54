"""Which class speaks to which store. Each imports its library when it is wanted: they are large, and may be missing."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from trainer_engine.config.publishing import AZURE, B2, DROPBOX, HUB, LIBRARIES, S3, PublishTarget, how_to_install, is_installed
from trainer_engine.config.resuming.remote_checkpoint import HTTP
from trainer_engine.publishing.base import Store, StoreError
from trainer_engine.publishing.connect import CLOSED, ConnectionRule


def open_store(target: PublishTarget, rule: ConnectionRule = CLOSED) -> Store:
    """Raises StoreError where its library is missing, the credentials are of no shape, or ``rule`` closes its address."""
    library = LIBRARIES.get(target.provider)
    if library and not is_installed(target.provider):
        raise StoreError(f"{target.provider} needs the library {library}.", hint=how_to_install(target.provider), hopeless=True)
    return OPENERS[target.provider](target, rule)


def _s3(target: PublishTarget, rule: ConnectionRule) -> Store:
    from trainer_engine.publishing.s3 import S3Store

    return S3Store(target, rule)


def _azure(target: PublishTarget, rule: ConnectionRule) -> Store:
    from trainer_engine.publishing.azure import AzureStore

    return AzureStore(target, rule)


def _dropbox(target: PublishTarget, rule: ConnectionRule) -> Store:
    from trainer_engine.publishing.dropbox import DropboxStore

    return DropboxStore(target)


def _hub(target: PublishTarget, rule: ConnectionRule) -> Store:
    from trainer_engine.publishing.hub import HubStore

    return HubStore(target)


def _web(target: PublishTarget, rule: ConnectionRule) -> Store:
    from trainer_engine.publishing.web import WebStore

    return WebStore(target, rule)


Opener = Callable[[PublishTarget, ConnectionRule], Store]
OPENERS: Mapping[str, Opener] = {S3: _s3, B2: _s3, AZURE: _azure, DROPBOX: _dropbox, HUB: _hub, HTTP: _web}
