"""The client of the Hugging Face hub: how long it waits, and what its errors mean to a run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from huggingface_hub import set_client_factory
from huggingface_hub.errors import (  # type: ignore[attr-defined]  # HTTPError belongs to the client that this hub uses
    GatedRepoError,
    HFValidationError,
    HTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils._http import default_client_factory

from trainer_engine.contract.errors import ModelUnavailable

ANSWER_SECONDS = 120.0
"""How long the hub may be silent before a request fails."""


def limit_waiting() -> None:
    """Give every request to the hub a time limit: the library sends most of them without one, and a silent server would never be left."""
    set_client_factory(_client_with_limit)


def _client_with_limit() -> Any:  # httpx's or its successor's, by the version of the library
    client = default_client_factory()
    client.event_hooks = {**client.event_hooks, "request": [*client.event_hooks["request"], _limit]}
    return client


def _limit(request: Any) -> None:
    """Limit connecting, reading and writing where the request does not. A request that names no limit overrules that of its client."""
    limits = request.extensions.get("timeout") or {}
    request.extensions["timeout"] = {
        name: ANSWER_SECONDS if limits.get(name) is None else limits[name] for name in ("connect", "read", "write", "pool")
    }


@contextmanager
def hub_errors(repo: str, revision: str | None) -> Iterator[None]:
    """A context for calls of the hub's library: no request waits forever, and what it raises becomes ModelUnavailable with a hint."""
    limit_waiting()
    try:
        yield
    except GatedRepoError as error:
        raise ModelUnavailable(
            f"The repository {repo} is gated.", hint=f"accept its conditions at huggingface.co/{repo}, then run: hf auth login"
        ) from error
    except RepositoryNotFoundError as error:
        raise ModelUnavailable(
            f"The repository {repo} does not exist, or is private.",
            hint="check the name; for a private repository run: hf auth login; a local folder needs a path that exists",
        ) from error
    except RevisionNotFoundError as error:
        raise ModelUnavailable(f"The repository {repo} has no revision {revision}.", hint="check --revision") from error
    except HFValidationError as error:
        raise ModelUnavailable(
            f"{repo} is neither a repository id nor a folder that exists.", hint="write organisation/name, or the path of a folder"
        ) from error
    except (HTTPError, OSError, RuntimeError) as error:
        if isinstance(error, OSError) and error.errno is not None and not isinstance(error, (ConnectionError, TimeoutError)):
            raise  # the disk's, such as "no space left"
        raise ModelUnavailable(
            f"The repository {repo} is not in the Hugging Face cache, and the hub could not be reached ({type(error).__name__}).",
            hint="check the network, HF_ENDPOINT and HF_HUB_OFFLINE, or give the path of a local copy",
        ) from error
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ModelUnavailable(
            f"The repository {repo} is not in the Hugging Face cache, and what answered is not the hub ({type(error).__name__}).",
            hint="check HF_ENDPOINT, and whether a proxy answers in its place, or give the path of a local copy",
        ) from error
