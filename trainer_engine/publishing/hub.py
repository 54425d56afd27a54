"""The Hugging Face hub. HF_ENDPOINT and the login are the library's business."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from huggingface_hub import HfApi, hf_hub_url
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.utils.tqdm import disable_progress_bars

from trainer_engine.config.publishing import PublishTarget
from trainer_engine.publishing.base import Moved, Store, StoreError

HOPELESS = frozenset((400, 401, 403, 404, 409, 413, 422))
LOGIN = "run `hf auth login` with a token that may write, or set HF_TOKEN"


class HubStore(Store):
    """One repository of models."""

    def __init__(self, target: PublishTarget) -> None:
        disable_progress_bars()
        self.target = target
        self.repository = target.bucket
        self.api = HfApi()

    def send(self, folder: Path, remote: str, moved: Moved) -> str:
        """One commit, in which the library leaves out what the hub has already."""
        with self._translated():
            repo = self.api.create_repo(self.repository, private=self.target.private, exist_ok=True)
            self.repository = repo.repo_id
            what = remote or "the result"
            message = f"Upload {what}"
            self.api.upload_folder(repo_id=repo.repo_id, folder_path=folder, path_in_repo=remote or None, commit_message=message)
        moved(sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()))
        return f"{repo.url}/tree/main/{remote}" if remote else str(repo.url)

    def read(self, path: str, limit: int) -> bytes:
        with self._translated(), tempfile.TemporaryDirectory() as place:
            return self._download(path, Path(place), limit).read_bytes()

    def fetch(self, path: str, target: Path, size: int, moved: Moved) -> None:
        """What an earlier try has left of the file is gone on with."""
        with self._translated():
            self._download(path, target.parent / ".hub", size).replace(target)
        moved(target.stat().st_size)

    def _download(self, path: str, place: Path, most: int) -> Path:
        found = self.api.get_hf_file_metadata(url=hf_hub_url(self.repository, path, endpoint=self.api.endpoint))
        if found.size is not None and found.size > most:
            raise StoreError(f"{path} has {found.size} bytes, more than the {most} that were expected.", hopeless=True)
        return Path(self.api.hf_hub_download(self.repository, path, local_dir=place))

    @contextmanager
    def _translated(self) -> Iterator[None]:
        where = f"the hub's repository {self.repository}"
        try:
            yield
        except LocalTokenNotFoundError as error:
            raise StoreError("There is no login for the hub.", hint=LOGIN, hopeless=True) from error
        except OfflineModeIsEnabled as error:
            raise StoreError("The hub is switched off (HF_HUB_OFFLINE).", hint="unset HF_HUB_OFFLINE", hopeless=True) from error
        except (RepositoryNotFoundError, EntryNotFoundError) as error:
            hint = "check the address; for a private repository: " + LOGIN
            raise StoreError(f"{where} does not exist, has no such file, or is closed to this login.", hint=hint, hopeless=True) from error
        except HFValidationError as error:
            raise StoreError(f"{self.repository} is no repository id.", hint="write owner/name", hopeless=True) from error
        except HfHubHTTPError as error:
            status = error.response.status_code if error.response is not None else 0
            hint = LOGIN if status in (401, 403) else ""
            raise StoreError(f"{where} answered HTTP {status}.", hint=hint, hopeless=status in HOPELESS) from error
        except ValueError as error:
            raise StoreError(f"{where} refuses what is uploaded: {str(error)[:300]}", hopeless=True) from error
        except (httpx.HTTPError, OSError, RuntimeError) as error:
            message = f"{where} could not be reached or broke off ({type(error).__name__})."
            raise StoreError(message, hint="check the network and HF_ENDPOINT") from error
