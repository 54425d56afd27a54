"""Dropbox."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dropbox
import requests
from dropbox.exceptions import ApiError, AuthError, BadInputError, DropboxException, HttpError
from dropbox.files import CommitInfo, FileMetadata, UploadSessionCursor, WriteMode

from trainer_engine.config.publishing import PublishTarget
from trainer_engine.publishing.base import LocalFile, Moved, ObjectProvider, ProviderError, joined

BLOCK_BYTES = 4 << 20
"""Block size of Dropbox's content hash."""
PART_BYTES = 16 << 20


class DropboxProvider(ObjectProvider):
    """The folder ``base_path`` of a Dropbox."""

    def __init__(self, target: PublishTarget, session: requests.Session | None = None) -> None:
        """``session`` replaces the library's own."""
        self.target = target
        self.client = dropbox.Dropbox(oauth2_access_token=target.token, session=session, timeout=60, max_retries_on_error=2)

    def _path(self, path: str) -> str:
        return f"/{joined(self.target.base_path, path)}"

    def holds(self, path: str, file: LocalFile) -> bool:
        try:
            found = self.client.files_get_metadata(self._path(path))
        except ApiError as error:
            if error.error.is_path() and error.error.get_path().is_not_found():
                return False
            raise
        return isinstance(found, FileMetadata) and found.size == file.size and found.content_hash == content_hash(file.path)

    def put(self, path: str, file: LocalFile, moved: Moved) -> None:
        mode = WriteMode.overwrite
        with file.path.open("rb") as stream:
            if file.size <= PART_BYTES:
                self.client.files_upload(stream.read(), self._path(path), mode=mode, mute=True)
                moved(file.size)
                return
            block = stream.read(PART_BYTES)
            cursor = UploadSessionCursor(self.client.files_upload_session_start(block).session_id, offset=len(block))
            moved(len(block))
            while file.size - cursor.offset > PART_BYTES:
                block = stream.read(PART_BYTES)
                self.client.files_upload_session_append_v2(block, cursor)
                cursor.offset += len(block)
                moved(len(block))
            block = stream.read()
            self.client.files_upload_session_finish(block, cursor, CommitInfo(self._path(path), mode=mode, mute=True))
            moved(len(block))

    def address(self, remote: str) -> str:
        return f"dropbox:/{self._path(remote)}"

    @contextmanager
    def translated(self) -> Iterator[None]:
        try:
            yield
        except AuthError as error:
            hint = "make a new token with files.content.write and files.metadata.read"
            raise ProviderError("Dropbox refuses the token.", hint=hint, permanent=True) from error
        except (ApiError, BadInputError) as error:
            raise ProviderError(
                f"Dropbox refused a file: {_reason(error)}", hint="check base_path and the space left", permanent=True
            ) from error
        except (HttpError, DropboxException) as error:
            raise ProviderError(f"Dropbox did not accept a file: {type(error).__name__}.") from error
        except requests.RequestException as error:
            raise ProviderError(f"Dropbox could not be reached: {type(error).__name__}.", hint="check the network") from error


def _reason(error: ApiError | BadInputError) -> str:
    return str(error.error if isinstance(error, ApiError) else error.message)[:200]


def content_hash(path: Path) -> str:
    """Dropbox's content hash: the SHA-256 of the concatenated SHA-256 of each block."""
    total = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(BLOCK_BYTES):
            total.update(hashlib.sha256(block).digest())
    return total.hexdigest()
