"""S3 and compatible providers: R2, Backblaze B2, MinIO and others."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
from boto3.exceptions import S3UploadFailedError
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, PartialCredentialsError, ProfileNotFound

from trainer_engine.config.publishing import PublishTarget
from trainer_engine.publishing.base import LocalFile, Moved, ObjectProvider, ProviderError, joined
from trainer_engine.publishing.connect import CLOSED, ConnectionRule, refuse_closed

HASH = "sha256"
"""Name of the metadata entry with the hash of an object."""
LARGEST_SINGLE_PART = 5 << 30
PART_BYTES = 16 << 20
BLOCK_BYTES = 1 << 20
PERMANENT = frozenset((400, 401, 403, 404, 405))
QUERY = re.compile(r"\?[^\s\"'`]*")
CODE = re.compile(r"\(([A-Za-z0-9]+)\) when calling")


class S3Provider(ObjectProvider):
    """A bucket."""

    def __init__(self, target: PublishTarget, rule: ConnectionRule = CLOSED) -> None:
        """Raises ProviderError if the profile does not exist."""
        self.target = target
        self.bucket = target.bucket
        config = Config(
            connect_timeout=15,
            read_timeout=60,
            retries={"max_attempts": 3, "mode": "standard"},
            # Compatible providers reject the checksums that newer clients add, and have no host name for each bucket.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            s3={"addressing_style": "path" if target.endpoint_url else "auto"},
        )
        with self.translated():
            session = boto3.Session(
                aws_access_key_id=target.access_key or None,
                aws_secret_access_key=target.secret_key or None,
                aws_session_token=target.session_token or None,
                profile_name=target.profile or None,
                region_name=target.region or None,
            )
            region = session.region_name or ("auto" if target.endpoint_url else "us-east-1")
            self.client = session.client(
                "s3", region_name=region, endpoint_url=target.endpoint_url or None, use_ssl=target.use_ssl, config=config
            )
        refuse_closed(self.client.meta.endpoint_url, rule)
        self.client.meta.events.register("before-sign.s3", self._add_headers)
        threshold = LARGEST_SINGLE_PART if target.force_single_part else PART_BYTES
        # "classic": the other client opens connections that the guard of this process does not see.
        how: dict[str, Any] = {"max_concurrency": 4, "preferred_transfer_client": "classic"}
        self.transfer = TransferConfig(multipart_threshold=threshold, multipart_chunksize=PART_BYTES, **how)

    def _add_headers(self, request: Any, **_: Any) -> None:
        for name, value in self.target.request_headers.items():
            del request.headers[name]
            request.headers[name] = value

    def _key(self, path: str) -> str:
        return joined(self.target.base_path, path)

    def holds(self, path: str, file: LocalFile) -> bool:
        try:
            found = self.client.head_object(Bucket=self.bucket, Key=self._key(path))
        except ClientError as error:
            # Without permission to list, a missing object is reported as 403.
            if _status(error) in (403, 404):
                return False
            raise
        return bool(found["ContentLength"] == file.size and found.get("Metadata", {}).get(HASH) == file.sha256)

    def put(self, path: str, file: LocalFile, moved: Moved) -> None:
        if self.target.force_single_part and file.size > LARGEST_SINGLE_PART:
            raise ProviderError(
                f"{file.name} is larger than the 5 GiB of a single part.", hint="set force_single_part to false", permanent=True
            )
        extra = {"Metadata": {HASH: file.sha256}}
        self.client.upload_file(str(file.path), self.bucket, self._key(path), ExtraArgs=extra, Config=self.transfer, Callback=moved)

    def address(self, remote: str) -> str:
        key = self._key(remote)
        public = self.target.public_base_url.partition("?")[0].rstrip("/")
        return f"{public}/{key}" if public else f"s3://{self.bucket}/{key}"

    def read(self, path: str, limit: int) -> bytes:
        with self.translated():
            answer = self.client.get_object(Bucket=self.bucket, Key=path)
            content: bytes = answer["Body"].read(limit + 1)
        if len(content) > limit:
            raise ProviderError(f"{path} is larger than {limit} bytes.", permanent=True)
        return content

    def fetch(self, path: str, target: Path, size: int, moved: Moved) -> None:
        with self.translated():
            body = self.client.get_object(Bucket=self.bucket, Key=path)["Body"]
            with target.open("wb") as stream:
                while block := body.read(BLOCK_BYTES):
                    if stream.tell() + len(block) > size:
                        raise ProviderError(f"{path} has more than the {size} bytes that the manifest says.", permanent=True)
                    stream.write(block)
                    moved(len(block))

    @contextmanager
    def translated(self) -> Iterator[None]:
        where = f"the bucket {self.bucket}"
        try:
            yield
        except (NoCredentialsError, PartialCredentialsError) as error:
            hint = "give access_key and secret_key in publishing_config, or a profile in ~/.aws"
            raise ProviderError(f"There are no credentials for {where}.", hint=hint, permanent=True) from error
        except ProfileNotFound as error:
            raise ProviderError(f"{error}.", hint="check profile in publishing_config", permanent=True) from error
        except ClientError as error:
            raise _refusal(where, _status(error), str(error.response.get("Error", {}).get("Code", ""))) from error
        except S3UploadFailedError as error:
            # The transfer manager wraps the exception of the client, sometimes only as text.
            inner = error.__context__
            if isinstance(inner, ClientError):
                raise _refusal(where, _status(inner), str(inner.response.get("Error", {}).get("Code", ""))) from error
            found = CODE.search(str(error))
            raise ProviderError(f"{where} did not accept a file ({found[1] if found else 'the transfer failed'}).") from error
        except (BotoCoreError, ValueError) as error:
            raise ProviderError(f"{where} could not be reached: {_short(error)}", hint="check endpoint_url and the network") from error


def _status(error: ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _refusal(where: str, status: int, code: str) -> ProviderError:
    hints = {
        401: "check the credentials in publishing_config",
        403: "check the credentials in publishing_config, and what they may do in the bucket",
        404: "check bucket, region and endpoint_url, and that the object is there",
    }
    message = f"{where} answered HTTP {status}{f' ({code})' if code and code != str(status) else ''}."
    return ProviderError(message, hint=hints.get(status, ""), permanent=status in PERMANENT and code != "RequestTimeout")


def _short(error: Exception) -> str:
    """The message without the query of URLs, which may contain a signature."""
    return QUERY.sub("", str(error))[:300]
