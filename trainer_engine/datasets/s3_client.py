"""Speaks the protocol of S3 through botocore, over connections to addresses that were checked.

botocore signs, retries, pages and parses. What it would send, ``HttpClient`` sends: botocore's event ``before-send`` takes an answer.
"""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from botocore import UNSIGNED
from botocore.awsrequest import AWSResponse
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, ConnectTimeoutError, EndpointConnectionError
from botocore.session import Session

from trainer_engine.datasets.egress import AddressRefused, Reach
from trainer_engine.datasets.http_client import HttpClient

if TYPE_CHECKING:
    from trainer_engine.datasets.sources.aws import Bucket

LARGEST_ANSWER_BYTES = 16 << 20
"""Largest listing, and largest range that is asked for."""
REQUEST_SECONDS = 120.0
"""A request that takes longer is given up, even if bytes arrive."""
ATTEMPTS = 4
RANGED, WHOLE = 206, 200


class ServiceRefused(OSError):
    """The service answered with an error. The message has the status and the service's code, and no secret."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class S3Client:
    """Lists and reads the objects of a bucket. Safe for several threads."""

    def __init__(self, bucket: Bucket, reach: Reach) -> None:
        self.bucket = bucket.name
        self._http = HttpClient(reach, bucket.most_connections)
        region = bucket.region if bucket.region != "auto" else "auto" if bucket.endpoint_url else "us-east-1"
        config = Config(
            retries={"total_max_attempts": ATTEMPTS, "mode": "standard"},
            # Compatible services reject the checksums that newer clients add, and have no host name for each bucket.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            s3={"addressing_style": "path" if bucket.endpoint_url else "auto"},
            signature_version=None if bucket.access_key else UNSIGNED,
        )
        with _translated(self.bucket):
            self._client = Session().create_client(
                "s3",
                region_name=region,
                endpoint_url=bucket.endpoint_url or None,
                aws_access_key_id=bucket.access_key or None,
                aws_secret_access_key=bucket.secret_key or None,
                aws_session_token=bucket.session_token or None,
                config=config,
            )
        self._client.meta.events.register("before-send.s3", self._send)

    def objects(self, prefix: str) -> Iterator[tuple[str, int, str]]:
        """Yields (key, size in bytes, ETag) of each object below a prefix. Raises OSError."""
        with _translated(self.bucket):
            for page in self._client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix):
                for found in page.get("Contents", ()):
                    yield found["Key"], int(found["Size"]), found["ETag"].strip('"')

    def head(self, key: str) -> tuple[int, str]:
        """Returns (size in bytes, ETag) of an object. Raises OSError."""
        with _translated(self.bucket):
            found = self._client.head_object(Bucket=self.bucket, Key=key)
        return int(found["ContentLength"]), str(found["ETag"]).strip('"')

    def read(self, key: str, etag: str, start: int, count: int) -> bytes:
        """Returns a range of an object, as long as it has this ETag. Raises OSError, with ``status`` 404 or 412 for another object."""
        with _translated(self.bucket):
            answer = self._client.get_object(Bucket=self.bucket, Key=key, Range=f"bytes={start}-{start + count - 1}", IfMatch=f'"{etag}"')
            content: bytes = answer["Body"].read()
        if answer["ResponseMetadata"]["HTTPStatusCode"] == WHOLE:
            content = content[start : start + count]  # a service without ranges
        if len(content) != count:
            raise ConnectionError(f"the service sent {len(content)} of {count} bytes")
        return content

    def _send(self, request: Any, **_: Any) -> AWSResponse:
        """Sends a request of botocore, which tries again after an error of its own kind, and after no other."""
        headers = {name: value.decode("latin-1") if isinstance(value, bytes) else str(value) for name, value in request.headers.items()}
        until = time.monotonic() + REQUEST_SECONDS
        try:
            with self._http.stream(request.method, request.url, headers) as answer:
                content = bytearray()
                for block in answer.iter_raw():
                    content += block
                    if len(content) > LARGEST_ANSWER_BYTES:
                        raise AddressRefused("the service sends more than was asked for")
                    if time.monotonic() > until:
                        raise ConnectTimeoutError(endpoint_url=_without_query(request.url))
                return AWSResponse(request.url, answer.status_code, dict(answer.headers), _Body(bytes(content)))
        except AddressRefused:
            raise
        except OSError as error:
            raise EndpointConnectionError(endpoint_url=_without_query(request.url), error=error) from error


class _Body(io.BytesIO):
    """A body that was received, as botocore reads it."""

    def stream(self) -> Iterator[bytes]:
        yield self.read()


def _without_query(url: str) -> str:
    return url.partition("?")[0]


@contextmanager
def _translated(bucket: str) -> Iterator[None]:
    """Raises OSError for errors of botocore, with a text for people."""
    try:
        yield
    except ClientError as error:
        status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        code = str(error.response.get("Error", {}).get("Code", ""))
        if code == "NoSuchBucket":
            raise FileNotFoundError(2, f"there is no bucket {bucket}") from error
        named = f" ({code})" if code.isalnum() and code != str(status) else ""
        hint = "; check the keys, and what they may do in the bucket" if status in (401, 403) else ""
        raise ServiceRefused(status, f"the service answered HTTP {status}{named}{hint}") from error
    except EndpointConnectionError as error:
        raise ConnectionError(f"the service could not be reached: {error.kwargs.get('error')}") from error
    except (BotoCoreError, ValueError) as error:
        raise ConnectionError(f"the service could not be asked: {type(error).__name__}: {str(error).partition('?')[0][:200]}") from error
