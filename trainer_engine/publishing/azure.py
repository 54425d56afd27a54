"""Azure Blob Storage."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from azure.core.exceptions import AzureError, ClientAuthenticationError, HttpResponseError, ResourceNotFoundError
from azure.storage.blob import BlobServiceClient

from trainer_engine.config.publishing import PublishTarget
from trainer_engine.publishing.base import LocalFile, Moved, ObjectProvider, ProviderError, joined
from trainer_engine.publishing.connect import CLOSED, ConnectionRule, refuse_closed

HASH = "sha256"
PERMANENT = frozenset((400, 401, 403, 404, 405))
BLOCK_BYTES = 8 << 20


class AzureProvider(ObjectProvider):
    """A container of Azure Blob Storage."""

    def __init__(self, target: PublishTarget, rule: ConnectionRule = CLOSED) -> None:
        """Raises ProviderError for an invalid connection string."""
        self.target = target
        options: dict[str, Any] = {
            "max_single_put_size": BLOCK_BYTES,
            "max_block_size": BLOCK_BYTES,
            "retry_total": 2,
            "connection_timeout": 15,
            "read_timeout": 60,
        }
        with self.translated():
            if target.connection_string:
                service = BlobServiceClient.from_connection_string(target.connection_string, **options)
            else:
                service = BlobServiceClient(target.blob_address, credential=target.account_key or None, **options)
            refuse_closed(service.url, rule)
            self.container = service.get_container_client(target.bucket)

    def _name(self, path: str) -> str:
        return joined(self.target.base_path, path)

    def holds(self, path: str, file: LocalFile) -> bool:
        try:
            found = self.container.get_blob_client(self._name(path)).get_blob_properties()
        except ResourceNotFoundError:
            return False
        return bool(found.size == file.size and (found.metadata or {}).get(HASH) == file.sha256)

    def put(self, path: str, file: LocalFile, moved: Moved) -> None:
        sent = 0

        def advance(current: int, total: int | None) -> None:
            nonlocal sent
            moved(current - sent)
            sent = current

        with file.path.open("rb") as stream:
            blob = self.container.get_blob_client(self._name(path))
            blob.upload_blob(stream, length=file.size, overwrite=True, metadata={HASH: file.sha256}, progress_hook=advance)

    def address(self, remote: str) -> str:
        base = (self.target.public_base_url or self.container.url).partition("?")[0].rstrip("/")
        return f"{base}/{self._name(remote)}"

    @contextmanager
    def translated(self) -> Iterator[None]:
        where = f"the container {self.target.bucket}"
        try:
            yield
        except ClientAuthenticationError as error:
            hint = "check the credentials in publishing_config"
            raise ProviderError(f"{where} refuses these credentials (HTTP {error.status_code}).", hint=hint, permanent=True) from error
        except HttpResponseError as error:
            status = error.status_code or 0
            hint = "check container and account in publishing_config" if status == 404 else "check the credentials" if status == 403 else ""
            reason = getattr(error, "error_code", None) or error.reason
            raise ProviderError(f"{where} answered HTTP {status} ({reason}).", hint=hint, permanent=status in PERMANENT) from error
        except ValueError as error:
            # The message of an error in a connection string may quote its key.
            raise ProviderError(
                f"The credentials of {where} cannot be used.", hint="check connection_string or account_key", permanent=True
            ) from error
        except AzureError as error:
            raise ProviderError(
                f"{where} could not be reached: {type(error).__name__}.", hint="check account_url and the network"
            ) from error
