"""Resolves the URL of a checkpoint at a storage provider, and refuses providers that the configuration does not name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from urllib.parse import unquote, urlsplit

from trainer_engine.config.publishing import B2, HUB, S3, PublishTarget
from trainer_engine.contract.checkpoint_files import NAME

HTTP = "http"
SCHEMES = ("s3", "r2", "http", "https", "hf")
EXPECTED = "s3://bucket/folder/checkpoint-500, an http(s) URL below a public_base_url, or hf://owner/repository/checkpoint-500"


class NotReachable(ValueError):
    """A URL that no run can resume from. The message says why for people, and ``code`` for programs."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class RemoteCheckpoint:
    """One checkpoint at a storage provider."""

    provider: PublishTarget
    path: str
    """Its folder at the provider, without slashes at its ends."""

    @property
    def name(self) -> str:
        """``checkpoint-<step>``, or ``checkpoint-<step>-rolling``."""
        return self.path.rpartition("/")[2]


def is_remote(wanted: str) -> bool:
    """Whether ``resume_from_checkpoint`` is a URL."""
    return "://" in wanted


def locate(address: str, targets: Sequence[PublishTarget]) -> RemoteCheckpoint:
    """Returns the provider and folder of a URL. Only the hub and providers in ``publishing_config`` are allowed.

    Raises NotReachable.
    """
    try:
        parts = urlsplit(address)
        port_is_one = parts.port != 0
    except ValueError as error:
        raise NotReachable(f"{address} is not a valid URL: {error}", "not_an_address") from error
    if parts.scheme not in SCHEMES or not parts.netloc or not port_is_one:
        raise NotReachable(f"The URL of a checkpoint must be {EXPECTED}.", "not_an_address")
    if parts.username is not None or parts.query or parts.fragment:
        raise NotReachable("The URL contains a password, a query or a fragment; credentials belong in publishing_config.", "not_an_address")
    path = unquote(parts.path).strip("/")
    if any(part in ("", ".", "..") for part in path.split("/")) or "\\" in path or not path.isprintable():
        raise NotReachable(f"{address} contains '..' or an empty folder.", "not_an_address")
    found = _located(parts.scheme, parts.netloc, path, address, targets)
    if not NAME.fullmatch(found.name):
        raise NotReachable(f"The URL ends with {found.name!r}, which is not the name of a checkpoint.", "not_a_checkpoint")
    return found


def _located(scheme: str, host: str, path: str, address: str, targets: Sequence[PublishTarget]) -> RemoteCheckpoint:
    if scheme == "hf":
        owner, _, rest = path.partition("/")
        if not rest or not re.fullmatch(r"[\w.-]+", owner):
            raise NotReachable("A URL on the hub must be hf://owner/repository/checkpoint-500.", "not_an_address")
        return RemoteCheckpoint(PublishTarget(HUB, f"{host}/{owner}"), rest)
    if scheme in ("s3", "r2"):
        named = [target for target in targets if target.provider in (S3, B2)]
        provider = next((target for target in named if target.bucket == host), None)
        if provider is not None:
            return RemoteCheckpoint(provider, path)
        buckets = ", ".join(target.bucket for target in named) or "none"
        raise NotReachable(f"publishing_config has no bucket {host!r}; it has {buckets}.", "unknown_store")
    for target in targets:
        base = target.public_base_url.partition("?")[0].rstrip("/")
        if base and address.startswith(f"{base}/"):
            below = unquote(address[len(base) + 1 :]).strip("/")
            return RemoteCheckpoint(replace(PublishTarget(HTTP, endpoint_url=base), name=target.name), below)
    raise NotReachable(f"No provider in publishing_config has a public_base_url that {address} begins with.", "unknown_store")
