"""The Hugging Face hub. The library reads ``HF_ENDPOINT`` and the login itself."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import HfApi, hf_hub_url
from huggingface_hub.errors import (  # type: ignore[attr-defined]  # HTTPError belongs to the client that this hub uses
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
)
from huggingface_hub.utils.tqdm import disable_progress_bars

from trainer_engine.config.publishing import PublishTarget
from trainer_engine.publishing.base import Moved, Provider, ProviderError
from trainer_engine.weights.hub_client import limit_waiting

PERMANENT = frozenset((400, 401, 403, 404, 409, 413, 422))
LOGIN = "run `hf auth login` with a token that may write, or set HF_TOKEN"


class HubProvider(Provider):
    """A model repository of the hub."""

    def __init__(self, target: PublishTarget) -> None:
        disable_progress_bars()
        limit_waiting()
        self.target = target
        self.repository = target.bucket
        self.api = HfApi()

    def send(self, folder: Path, remote: str, moved: Moved) -> str:
        """Upload in one commit. The library skips files that the hub already has."""
        with self._translated():
            repo = self.api.create_repo(self.repository, private=self.target.private, exist_ok=True)
            self.repository = repo.repo_id
            message = f"Upload {remote or 'the result'}"
            self.api.upload_folder(repo_id=repo.repo_id, folder_path=folder, path_in_repo=remote or None, commit_message=message)
        moved(sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()))
        return f"{repo.url}/tree/main/{remote}" if remote else str(repo.url)

    def read(self, path: str, limit: int) -> bytes:
        with self._translated(), tempfile.TemporaryDirectory() as place:
            return self._download(path, Path(place), limit).read_bytes()

    def fetch(self, path: str, target: Path, size: int, moved: Moved) -> None:
        """Download a file; continues a partial download of an earlier attempt."""
        with self._translated():
            self._download(path, target.parent / ".hub", size).replace(target)
        moved(target.stat().st_size)

    def _download(self, path: str, place: Path, most: int) -> Path:
        found = self.api.get_hf_file_metadata(url=hf_hub_url(self.repository, path, endpoint=self.api.endpoint))
        if found.size is not None and found.size > most:
            raise ProviderError(f"{path} has {found.size} bytes, more than the {most} that were expected.", permanent=True)
        return Path(self.api.hf_hub_download(self.repository, path, local_dir=place))

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Turn every exception of the library into ProviderError; only refusals that a retry cannot change are permanent."""
        where = f"the hub's repository {self.repository}"
        try:
            yield
        except LocalTokenNotFoundError as error:
            raise ProviderError("There is no login for the hub.", hint=LOGIN, permanent=True) from error
        except OfflineModeIsEnabled as error:
            raise ProviderError("The hub is switched off (HF_HUB_OFFLINE).", hint="unset HF_HUB_OFFLINE", permanent=True) from error
        except (RepositoryNotFoundError, RemoteEntryNotFoundError) as error:
            hint = "check the address; for a private repository: " + LOGIN
            raise ProviderError(
                f"{where} does not exist, has no such file, or is closed to this login.", hint=hint, permanent=True
            ) from error
        except HFValidationError as error:
            raise ProviderError(f"{self.repository} is not a repository id.", hint="write owner/name", permanent=True) from error
        except HfHubHTTPError as error:
            status = error.response.status_code if error.response is not None else 0
            hint = LOGIN if status in (401, 403) else ""
            raise ProviderError(f"{where} answered HTTP {status}.", hint=hint, permanent=status in PERMANENT) from error
        except (json.JSONDecodeError, LookupError, TypeError, AttributeError) as error:
            message = f"{where} did not answer as the hub does ({type(error).__name__})."
            raise ProviderError(message, hint="check HF_ENDPOINT, and whether a proxy answers in its place") from error
        except (HTTPError, OSError, RuntimeError) as error:
            message = f"{where} could not be reached or broke off ({type(error).__name__})."
            raise ProviderError(message, hint="check the network and HF_ENDPOINT") from error
        except ValueError as error:
            raise ProviderError(f"{where} refuses what is uploaded: {str(error)[:300]}", permanent=True) from error
